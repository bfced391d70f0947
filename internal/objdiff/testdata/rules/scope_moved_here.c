// refused: changed-scope
#ifdef NEW
int moved(int x) { return x + 1; }
#else
int moved(int x);
#endif
int get(int x) { return moved(x) * 2; }
