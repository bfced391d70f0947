// flags: -fPIE
// refused: new-tls
#ifdef NEW
static __thread int depth;
#endif
int work(int x)
{
#ifdef NEW
	depth += x;
	return depth;
#else
	return x;
#endif
}
