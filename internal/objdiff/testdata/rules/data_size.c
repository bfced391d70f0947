// refused: changed-data
#ifdef NEW
static int slots[9];
#else
static int slots[8];
#endif
int *slot(int i) { return &slots[i]; }
