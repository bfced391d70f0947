// The function with the variable is inlined before, and stands alone after.
// only: gcc
// changed: caller
// new: counted
volatile int sink;
#ifdef NEW
__attribute__((noinline))
#endif
static int counted(int x)
{
	static int count = 5;
	return sink = count += x;
}
int caller(int x) { return counted(x + 1) * 3; }
