/* Code with unusual ways through it. */
#include <alloca.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#ifdef FIXED
#define IF_FIXED(x) x
#else
#define IF_FIXED(x)
#endif

extern long outside(long) __attribute__((noinline));
__attribute__((cold, noinline)) long rare(long x, const char *why);
long rare(long x, const char *why) { static long times; times++; return x + times + (long)strlen(why) IF_FIXED(+ 3); }

long cold_part(long x)
{
	if (__builtin_expect((x & 3) == 1, 0))
		return rare(x, IF_FIXED("a longer ") "reason") * 2;
	if (__builtin_expect(x > 100000, 0))
		abort();
	return outside(x) + 1 IF_FIXED(+ 10);
}

/* Only code that is seldom run differs. */
long cold_only(long x)
{
	long r = outside(x);

	if (__builtin_expect((x & 3) == 2, 0))
		r += rare(r, IF_FIXED("another ") "why") IF_FIXED(+ 17);
	return r * 2;
}

long computed_goto(long x)
{
	static const void *const labels[] = {&&a, &&b, &&c, IF_FIXED(&&d)};
	long r = 0, i;

	for (i = 0; i < 6; i++) {
		goto *labels[(unsigned long)(x + i) % (sizeof labels / sizeof *labels)];
	a:
		r += i;
		continue;
	b:
		r *= 3;
		continue;
	c:
		r -= x;
		continue;
#ifdef FIXED
	d:
		r ^= 0x55;
#endif
	}
	return r;
}

long stack_allocated(long x)
{
	long n = (x & 15) + 1, i, r = 0;
	long *p = alloca((size_t)n * sizeof *p);

	for (i = 0; i < n; i++)
		p[i] = outside(i) + x;
	for (i = n - 1; i >= 0; i--)
		r = r * 2 + p[i] IF_FIXED(+ 1);
	return r;
}

static jmp_buf back;
static __attribute__((noinline)) void leap(long x) { longjmp(back, (int)(x & 7) + 1 IF_FIXED(+ 10)); }
long jumps_back(long x)
{
	static volatile long tries;
	int r = setjmp(back);

	tries++;
	if (r == 0 && (x & 1))
		leap(x);
	return r + tries IF_FIXED(+ 100);
}

long nested_loops(long x)
{
	long a[4][5], r = 0;
	int i, j;

	for (i = 0; i < 4; i++)
		for (j = 0; j < 5; j++)
			a[i][j] = x * i - j IF_FIXED(* 2);
	for (j = 0; j < 5; j++)
		for (i = 3; i >= 0; i--)
			r += a[i][j] * (i ^ j);
	return r;
}

static long named(const char *s) { long h = 0; while (*s) h = h * 31 + *s++; return h; }
long function_name(long x) { return named(__func__) + named(__func__ + 3) * x IF_FIXED(+ 1); }

/* The number of the line is the same in both. */
static long failures;
static __attribute__((noinline)) void failed(int line) { failures += line; }
long asserted(long x)
{
	if (x & 1)
		failed(__LINE__);
	return failures IF_FIXED(* 2);
}

long inline_assembler(long x)
{
	long r;

	__asm__("lea 3(%1,%1,2), %0\n\txor $0x77, %0" : "=r"(r) : "r"(x) : "cc");
#ifdef FIXED
	__asm__ volatile("bswap %0\n\trorq $11, %0" : "+r"(r) : : "cc");
#endif
	return r;
}
