// A static function whose name another file (calc_b.c) uses for a static
// function of its own.
#include "calc.h"

CALC_NOINLINE static long same_name(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 100;
}

long a_same(long x) { return same_name(x); }
