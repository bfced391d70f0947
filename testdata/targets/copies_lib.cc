// A library that makes objects of the class that every module has its own copy
// of (copies.h). Built twice, under two names, it is loaded by copies.cc.
#include "copies.h"

extern "C" __attribute__((visibility("default"))) Copied *make_copied() { return new Copied; }
extern "C" __attribute__((visibility("default"))) long call_thrice(long x) { return thrice(x); }

// An ordinary function of the library, for the tests of dlopened libraries.
extern "C" __attribute__((visibility("default"), noinline)) long library_function(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 50;
}
