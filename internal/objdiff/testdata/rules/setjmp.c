// changed: guarded
// warned: saved-context
#include <setjmp.h>
jmp_buf place;
int work(int);
int guarded(int x)
{
	if (setjmp(place))
		return -1;
#ifdef NEW
	return work(x) + 1;
#else
	return work(x);
#endif
}
