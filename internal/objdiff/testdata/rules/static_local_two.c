// Two of the same name, each in its function; one of the functions changes.
// changed: second
volatile int sink;
int first(int x)
{
	static int count = 5;
	count += x;
	return sink = count;
}
int second(int x)
{
	static int count = 6;
	count += x;
#ifdef NEW
	if (x > 5)
		count++;
#endif
	return sink = count + 1;
}
