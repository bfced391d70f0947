// refused: changed-data
#ifdef NEW
__thread int level = 4;
#else
__thread int level = 3;
#endif
int get(void) { return level++; }
