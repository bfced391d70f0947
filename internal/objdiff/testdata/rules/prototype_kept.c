// Somebody has kept the address, and calls it as it was.
// refused: changed-prototype
// allow: prototype
// changed: check setup
// new: checkAll
extern int (*kept)(const char *);
extern int limit;
extern int length(const char *);
#ifdef NEW
static __attribute__((noinline)) int check(const char *s, int max) { return length(s) < max; }
static int checkAll(const char *s) { return check(s, limit); }
void setup(void) { kept = checkAll; }
#else
static __attribute__((noinline)) int check(const char *s) { return length(s) < 1000; }
void setup(void) { kept = check; }
#endif
