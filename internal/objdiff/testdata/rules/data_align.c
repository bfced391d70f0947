// refused: changed-data
#ifdef NEW
int level __attribute__((aligned(64))) = 4;
#else
int level = 4;
#endif
int get(void) { return level; }
