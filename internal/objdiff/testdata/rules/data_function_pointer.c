// A table that programs can write gets another function.
// refused: changed-data
int a(int), b(int);
#ifdef NEW
int (*hooks[])(int) = {a, b};
#else
int (*hooks[])(int) = {a, a};
#endif
int run(int i, int x) { return hooks[i](x); }
