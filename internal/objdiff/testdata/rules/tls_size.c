// refused: changed-data
#ifdef NEW
__thread int slots[9];
#else
__thread int slots[8];
#endif
int *get(int i) { return &slots[i]; }
