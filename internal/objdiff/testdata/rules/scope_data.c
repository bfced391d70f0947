// refused: changed-scope
#ifndef NEW
static
#endif
int level = 3;
int get(void) { return level++; }
