// Two of one name in one function, and a new one: nobody can tell.
// only: gcc
// refused: ambiguous-static
volatile int sink;
int work(int x)
{
#ifdef NEW
	if (x == 9) {
		static int count = 5;
		sink = ++count;
	}
#endif
	if (x) {
		static int count = 5;
		sink = count += x;
	} else {
		static int count = 5;
		sink = count -= 3;
	}
	return x;
}
