// The change is in a function that is inlined.
// changed: outer
// inlined: inner
static inline int inner(int x)
{
#ifdef NEW
	if (x > 100)
		return 100;
#endif
	return x * 7;
}
int outer(int x) { return inner(x + 1) - 1; }
