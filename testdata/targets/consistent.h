// What the consistent target, its patch and their common part share.
#pragma once

#include <setjmp.h>

// operation is one logical operation: a call of outer and all that it calls. The
// functions that belong together (outer, inner1 to inner4, in consistent_set.h)
// each leave their version in it: one operation must see only one.
struct operation {
	unsigned versions; // bit V is set: code of version V had a part in it
	long wrong;        // results that are wrong, whatever the version
	int depth;         // how deep to go down
	int sleep;         // microseconds to sleep at each step inside; 0: compute
	jmp_buf env;       // in outer, for inner3
};

enum kind { deep, throws, jumps, crosses, leaf, kinds };

extern "C" {
// Replaced. Each gives what its kind of operation expects.
void outer(operation *o, int kind);
long inner1(operation *o, long x); // x + 1
long inner2(operation *o, long x); // throws x + 2
long inner3(operation *o, long x); // longjmps to outer with x + 3
long inner4(operation *o, long x); // 4 + 2 x, with itself and cross in turns

// Not replaced.
void linger(operation *o);                          // takes a while, in the processor or asleep
long descend(operation *o, long x, int depth);      // x + depth + 1, inner1 at the bottom
long through(operation *o, long x);                 // calls inner2
[[noreturn]] void leap(operation *o, long x);       // longjmps
long cross(operation *o, long x);                   // inner4(o, x) + 1
long without_cfi(operation *o, long x, long (*f)(operation *, long)); // f(o, x), by hand
}
