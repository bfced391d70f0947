// A thread-local variable of a function leads to numbers of another sort.
// refused: changed-type
// allow: struct-layout
// changed: mean
#include <stdlib.h>
double mean(int n)
{
#ifdef NEW
	static _Thread_local double *sums;
#else
	static _Thread_local long *sums;
#endif
	if (!sums)
		sums = calloc(16, 8);
	sums[n & 15] += n;
	return sums[0] / 16;
}
