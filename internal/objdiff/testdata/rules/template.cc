// A template that is compiled into several files.
// changed: int twice<int>(int)
template <class T> __attribute__((noinline)) T twice(T x)
{
#ifdef NEW
	return x + x + 1;
#else
	return x + x;
#endif
}
int a(int x) { return twice(x) + 3; }
