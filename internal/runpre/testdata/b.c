#include <stdio.h>
#include "u.h"
static int hits;
long shared_count = 4;
static __attribute__((noinline)) int helper(int x) { return x + 1; }
static __attribute__((noinline)) int scale(int x) { hits += 2; return x * 5; }
int other_op(int x) { return scale(x) - helper(x); }
int other(int x) { shared_count--; return helper(x) + hits; }
int tail(int x) { if (x > 4) return other(x + 1); printf("tail %d\n", x); return hits; }
int (*b_keep(int n))(int) { return n ? helper : scale; }
