// The variable of an inline function is one for all files, and goes on.
// changed: counted(int)
inline __attribute__((noinline)) int counted(int x)
{
	static int count = 3;
#ifdef NEW
	count += 2 * x;
#else
	count += x;
#endif
	return count;
}
int work(int x) { return counted(x) + 1; }
