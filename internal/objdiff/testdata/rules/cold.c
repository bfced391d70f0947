// Only the cold part differs.
// only: gcc
// changed: work
// parts: work.cold
int puts(const char *);
__attribute__((cold, noinline)) void fail(const char *);
int work(int *p, int x)
{
	if (__builtin_expect(x < 0, 0)) {
#ifdef NEW
		fail("below zero");
#else
		fail("negative");
#endif
		*p = 3;
	}
	return *p + x;
}
