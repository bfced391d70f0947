// A patch of one function of the calculator, or of any other that takes a long
// and gives a long, made by flags:
//
//	-DNAME=add_one    the function to replace
//	-DPLUS=1000       it now gives its argument and this
//	-DVERSION=2       the patch's version, and -DPATCH='"name"' its name; without
//	                  them it is a plain shared object
#ifdef VERSION
#include "hotpatch.h"
HOTPATCH_NAME(PATCH, VERSION)
#endif

long NAME(long x);
long NAME(long x) { return x + PLUS; }
