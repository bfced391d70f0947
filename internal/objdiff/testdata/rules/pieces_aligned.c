// clang stores a part of a variable only, until its alignment and address matter.
// only: clang
// refused: removed-static
#include <stdint.h>
#ifdef NEW
static char g[64] __attribute__((aligned(64)));
#else
static char g[64];
#endif
extern void say(int, int);
void handle(void)
{
	g[0]++;
	say(g[0], 0);
#ifdef NEW
	say(0, (int)((uintptr_t)g % 128));
#endif
}
