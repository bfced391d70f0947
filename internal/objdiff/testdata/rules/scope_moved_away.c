// refused: changed-scope
#ifdef NEW
int moved(int x);
#else
__attribute__((noinline)) int moved(int x) { return x + 1; }
#endif
int get(int x) { return moved(x) * 2 + 1; }
int other(int x) { return moved(x); }
