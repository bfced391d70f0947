// changed: fast
extern int level;
#ifdef NEW
static int fast(int x) { return x * 3; }
#else
static int fast(int x) { return x * 2; }
#endif
static int slow(int x) { return x + x; }
static int (*resolve(void))(int) { return level > 2 ? fast : slow; }
int work(int) __attribute__((ifunc("resolve")));
