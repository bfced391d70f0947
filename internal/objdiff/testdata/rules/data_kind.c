// From .bss to .data: the initial value differs.
// refused: changed-data
#ifdef NEW
int level = 4;
#else
int level;
#endif
int get(void) { return level; }
