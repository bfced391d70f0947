// A template that is used with another type is new, the others are not touched.
// changed: work(int)
// new: long twice<long>(long)
template <class T> __attribute__((noinline)) T twice(T x) { return x + x; }
int work(int x)
{
#ifdef NEW
	return twice(x) + (int)twice((long)x);
#else
	return twice(x) + 3;
#endif
}
