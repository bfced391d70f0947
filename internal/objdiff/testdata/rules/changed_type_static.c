// A static variable of a function has another type.
// refused: changed-type
// allow: struct-layout
// changed: add
int add(int x)
{
#ifdef NEW
	static double total;
#else
	static long total;
#endif
	total += x;
	return total;
}
