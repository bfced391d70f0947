// refused: changed-constructor
// allow: constructor
// changed:
void note(int);
__attribute__((constructor)) static void setup(void)
{
#ifdef NEW
	note(4);
#else
	note(3);
#endif
}
int get(void) { return 3; }
