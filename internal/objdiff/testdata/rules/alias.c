// changed: work
// aliases: also
#ifdef NEW
int work(int x) { return x * 4; }
#else
int work(int x) { return x * 3; }
#endif
int also(int x) __attribute__((alias("work")));
