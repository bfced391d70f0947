// clang stores what the variable leads to in its place.
// only: clang
// refused: changed-type
#include <stdlib.h>
#ifdef NEW
static long **p;
#else
static int **p;
#endif
__attribute__((noinline)) static void make(void)
{
	p = calloc(8, sizeof *p);
	p[0] = calloc(8, sizeof **p);
}
long count(void)
{
	if (!p)
		make();
	return ++p[0][0];
}
