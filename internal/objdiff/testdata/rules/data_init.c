// refused: changed-data
#ifdef NEW
int level = 4;
#else
int level = 3;
#endif
int get(void) { return level; }
