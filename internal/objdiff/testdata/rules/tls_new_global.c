// flags: -fPIC
// changed: work
// new: fresh
// warned: new-global
#ifdef NEW
__thread int fresh;
#endif
int work(int x)
{
#ifdef NEW
	fresh += x;
	return fresh;
#else
	return x;
#endif
}
