// A variable has another type of the same size: what is in it is of the old one.
// refused: changed-type
// allow: struct-layout
// changed: add
#ifdef NEW
static float total;
#else
static int total;
#endif
int add(int x) { total += x; return total; }
