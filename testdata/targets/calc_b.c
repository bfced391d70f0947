// A static function whose name another file (calc_a.c) uses for a static
// function of its own.
#include "calc.h"

CALC_NOINLINE static long same_name(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 200;
}

long b_same(long x) { return same_name(x); }
