// A static structure that clang takes apart into variables with numbers.
// changed: work
static struct { int a, b; long c; } state;
int work(int x)
{
#ifdef NEW
	if (x < 0)
		return -1;
#endif
	state.a += x;
	state.b ^= x;
	state.c -= x;
	return state.a + state.b;
}
long other(int x)
{
	state.c ^= x;
	return state.c + state.b;
}
