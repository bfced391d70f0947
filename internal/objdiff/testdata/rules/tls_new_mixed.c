// One block for old and new variables.
// flags: -fPIC
// only: gcc
// refused: new-tls
static __thread int old;
#ifdef NEW
static __thread int fresh;
#endif
int work(int x)
{
#ifdef NEW
	fresh += x;
	old += fresh;
#else
	old += x;
#endif
	return old;
}
