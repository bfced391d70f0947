// A new static variable of the same name in front of another: that of late goes
// on with its state.
// changed: early
// kept: late
// new: count
volatile int sink;
int early(int x)
{
#ifdef NEW
	static int count = 100;
	count += x;
	sink = count;
#endif
	return x;
}
int late(int x)
{
	static int count = 5;
	count += x;
	sink = count + 1;
	return x * 2;
}
