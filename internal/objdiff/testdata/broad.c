/* A bit of everything that a C file can have. With NEW, compute is different. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct point { int x, y; };
struct ops { const char *name; int (*run)(int); };
enum color { RED, GREEN, BLUE };

int g_total = 5;
extern int g_elsewhere;
static int hits;
static __thread int depth;
__thread int g_depth = 3;
static const int primes[] = {2, 3, 5, 7, 11, 13, 17, 19};
static const char *const names[] = {"red", "green", "blue"};
const int g_table[] = {1, 2, 3};

static int twice(int x) { return 2 * x; }
static int thrice(int x) { return 3 * x + hits; }
static struct ops table[] = {{"twice", twice}, {"thrice", thrice}};

__attribute__((noinline)) static int scale(int x)
{
	static int count;
	static int last = 7;
	count++;
	last = x ^ last;
	return x * 3 + count + last;
}

__attribute__((noinline)) int other(int x)
{
	static int count = 1;
	count += x;
	hits++;
	return count;
}

const char *color_name(enum color c)
{
	if ((unsigned)c > BLUE) {
		fprintf(stderr, "%s: bad color %d\n", __func__, c);
		return "none";
	}
	return names[c];
}

int choose(int x)
{
	switch (x) {
	case 0: return puts("zero");
	case 1: return other(1);
	case 2: return scale(7);
	case 3: return (int)strlen(names[x % 3]);
	case 4: return abs(g_total);
	case 5: return hits++;
	case 6: return errno;
	}
	return -1;
}

int mapped(int x)
{
	switch (x) {
	case 0: return 17;
	case 1: return 4;
	case 2: return 99;
	case 3: return 12;
	case 4: return 55;
	case 5: return 8;
	}
	return 0;
}

double area(double r)
{
	struct point p[4] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}};
	return r * r * 3.14159 + p[(int)r & 3].x;
}

int compute(int x)
{
	static int calls;
	calls++;
	depth++;
	g_depth += depth;
	g_total += table[x & 1].run(x) + primes[x & 7] + g_elsewhere;
#ifdef NEW
	if (x < 0) {
		fprintf(stderr, "compute: refused %d\n", x);
		return -1;
	}
#endif
	if (x > 1000)
		abort();
	return scale(x) + other(x) + calls + g_table[x % 3];
}

int main(int argc, char **argv)
{
	(void)argv;
	printf("%d %s\n", compute(argc), color_name(argc % 3));
	return choose(argc) + mapped(argc) + (int)area(argc);
}
