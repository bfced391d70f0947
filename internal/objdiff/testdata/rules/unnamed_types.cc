// Types without a name are numbered: the state of instances would be another's.
// only: gcc
// refused: ambiguous-static
template <class T> __attribute__((noinline)) static int total(T &t) {
	static int n;
	n += t.v;
	return n;
}
#ifdef NEW
static struct { int v; } zero;
#endif
static struct { int v; } one;
static struct { int v; } two;
int sum(int x) {
	one.v = x;
	two.v = 2 * x;
#ifdef NEW
	zero.v = x;
	return total(zero) + total(one) + total(two) * 3;
#else
	return total(one) + total(two) * 3;
#endif
}
