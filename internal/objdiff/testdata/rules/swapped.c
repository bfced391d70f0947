// Two variables change places in the code.
// changed: work
int first = 1, second = 2;
int work(void)
{
#ifdef NEW
	return first * 3 - second;
#else
	return second * 3 - first;
#endif
}
