// A patch of shape.h: every result is larger by 5000. It takes in the methods of
// several bases, so the compiler makes the thunks that belong to them.
//
//	C::fa, C::fb, F::fa    the methods of the 14 forms
//	L::vf                  behind a virtual base
#include "hotpatch.h"
#include "shape.h"

HOTPATCH_NAME("shape", 1)

long C::fa(long x) { return x + 5100 + c; }
long C::fb(long x) { return x + 5200 + c; }
long F::fa(long x) { return x + 5500 + a; }
long L::vf(long x) { return x + 5700 + l; }
