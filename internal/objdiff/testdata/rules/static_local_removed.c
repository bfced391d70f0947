// refused: removed-static
// allow: static-local
// changed: work
// removed: count
volatile int sink;
int work(int x)
{
#ifndef NEW
	static int count = 5;
	count += x;
	sink = count;
#endif
	return x;
}
