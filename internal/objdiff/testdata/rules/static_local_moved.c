// The variable is in another function now. Is it the same one?
// only: gcc
// refused: ambiguous-static
volatile int sink;
int one(int x)
{
#ifndef NEW
	static int count = 5;
	sink = count += x;
#endif
	return x;
}
int two(int x)
{
#ifdef NEW
	static int count = 5;
	sink = count += x;
#endif
	return x * 2;
}
