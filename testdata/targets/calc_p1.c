// A patch of the calculator that needs what only the macros of hotpatch.h give:
// static functions and variables of the target, a static function chosen by its
// file.
//
//	add_one          x + 1 + 2x: it calls the target's static times_two
//	count            counts hidden_counter (static) by 10 instead of 1, and
//	                 visible_counter and tls_counter not at all; gives x + hidden
//	many_parameters  all twenty, in another order
//	calc_a.c's same_name  x + 5100
#include "hotpatch.h"

HOTPATCH_NAME("calc", 1)
HOTPATCH_DESCRIPTION("static functions and variables of the calculator")
HOTPATCH_CVE("CVE-2026-0001")

HOTPATCH_REF_VAR(long, hidden, "calc.c:hidden_counter")
HOTPATCH_REF_FUNC(long, old_times_two, (long x), "times_two")

long add_one(long x);
long count(long x);
long many_parameters(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j, double k,
                     double l, double m, double n, double o, double p, double q, double r, double s, double t);

long add_one(long x) { return x + 1 + old_times_two(x); }

long count(long x) {
	*hidden += 10;
	return x + *hidden;
}

long many_parameters(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j, double k,
                     double l, double m, double n, double o, double p, double q, double r, double s, double t) {
	return 10 * a + 9 * b + 8 * c + 7 * d + 6 * e + 5 * f + 4 * g + 3 * h + 2 * i + j +
	       (long)(10 * k + 9 * l + 8 * m + 7 * n + 6 * o + 5 * p + 4 * q + 3 * r + 2 * s + t);
}

static long new_same_name(long x) { return x + 5100; }
HOTPATCH_REPLACE(new_same_name, "calc_a.c:same_name")
