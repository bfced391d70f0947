// refused: changed-ifunc
// allow: ifunc
// changed:
static int fast(int x) { return x; }
static int slow(int x) { return x + 0; }
extern int level;
#ifdef NEW
static int (*resolve(void))(int) { return level > 2 ? fast : slow; }
#else
static int (*resolve(void))(int) { return level > 1 ? fast : slow; }
#endif
int work(int) __attribute__((ifunc("resolve")));
