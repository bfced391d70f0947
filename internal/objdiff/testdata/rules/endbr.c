// flags: -fcf-protection
// changed: work
int work(int x)
{
#ifdef NEW
	return x * 3;
#else
	return x * 2;
#endif
}
