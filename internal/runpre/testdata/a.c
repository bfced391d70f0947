#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include "u.h"
static int hits;
static long total = 17;
int g_level = 3;
const int g_table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
static const char *const names[] = {"zero", "one", "two", "three"};
static __thread int t_local = 5;
__thread long t_global = 9;
typedef int (*op_t)(int);
static __attribute__((noinline)) int scale(int x) { hits++; return x * 3 + (int)total; }
static __attribute__((noinline)) int shift(int x) { total += x; return (x << 2) ^ hits; }
static __attribute__((noinline)) int helper(int x) { return x + 1; }
static op_t s_op = scale;
static op_t ops[3] = {scale, shift, other_op};
__attribute__((noinline)) int classify(int x)
{
	switch (x) {
	case 0: return g_level;
	case 1: return puts("one is here") + 2;
	case 2: return t_local++;
	case 3: return (int)t_global--;
	case 4: return helper(x) * 7;
	case 5: return shift(x) - 4;
	case 6: hits += 3; return 12;
	case 7: return (int)strlen(names[x & 3]);
	case 8: fprintf(stderr, "eight %d\n", errno); return 8;
	}
	return -1;
}
__attribute__((noinline)) static int counted(int x)
{
	static int calls;
	static int sum = 41;
	calls++;
	sum += x;
	return calls * sum;
}
__attribute__((noinline)) int compute(int n)
{
	int r = 0;
	for (int i = 0; i < n; i++) {
		r += s_op(i) + ops[i % 3](i) + g_table[i & 7] + counted(i);
		if (r > 100000) {
			fprintf(stderr, "too much: %s\n", names[i & 3]);
			abort();
		}
	}
	s_op = r & 1 ? shift : scale;
	shared_count += r;
	return r + other(r);
}
int a_main(int argc, char **argv)
{
	int r = compute(argc + 5);
	printf("%d %d %s %f\n", r, classify(argc), argv[0], r * 1.5);
	return tail(r);
}
