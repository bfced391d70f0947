// flags: -fpatchable-function-entry=16,14
// changed: work
int work(int x)
{
#ifdef NEW
	return x * 3;
#else
	return x * 2;
#endif
}
int other(int x) { return x * 5; }
