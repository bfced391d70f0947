// refused: split-alias
int work(int x) { return x * 3; }
#ifdef NEW
int also(int x) { return x * 4; }
#else
int also(int x) __attribute__((alias("work")));
#endif
