// refused: changed-constructor
// allow: constructor
// new: setup
void note(int);
#ifdef NEW
__attribute__((constructor)) static void setup(void) { note(4); }
#endif
int get(void) { return 3; }
