/* Functions and how they are called. */
#include <stdarg.h>
#ifdef FIXED
#define IF_FIXED(x) x
#else
#define IF_FIXED(x)
#endif

static __attribute__((noinline)) long plus(long x) { return x + 10 IF_FIXED(+ 1); }
static __attribute__((noinline)) long times(long x) { return x * 10; }
static long (*chosen)(long) = plus;
long (*shared_pointer)(long) = times;
static long (*const operations[])(long) = {plus, times, plus};

long pointer_equal(long x)
{
	long r = (chosen == plus) + 2 * (shared_pointer == times) + 4 * (operations[x & 1] == chosen) IF_FIXED(+ 8 * (chosen == times));
	return r + operations[(x & 3) % 3](x);
}

long chosen_pointer(long x) { chosen = x & 1 ? plus : times; return chosen(x) IF_FIXED(+ 100 * (chosen == plus)); }

static __attribute__((noinline)) long inner_changed(long x) { static long n; n++; return x * 2 + n IF_FIXED(+ 500); }
static __attribute__((noinline)) long middle_changed(long x) { return inner_changed(x + 1) IF_FIXED(* 3) + 1; }
long changed_calls_changed(long x) { return middle_changed(x) + inner_changed(x) IF_FIXED(+ 7); }

struct wide { long a, b, c; };
static __attribute__((noinline)) long special(const struct wide *w, int mode, int unused)
{
	(void)unused;
	if (mode == 3)
		return w->a * 3 + w->c IF_FIXED(+ 11);
	return w->a - w->c * mode;
}
long specialised(long x)
{
	struct wide w = {x, x + 1, x + 2};
	return special(&w, 3, 1) + special(&w, 3, 2) IF_FIXED(+ special(&w, 4, 2));
}

static inline long small(long x) { static long seen; seen += x & 1; return x * 7 + seen IF_FIXED(+ (x > 10 ? 100 : 0)); }
static long uses_small(long x) { return small(x) + small(x + 1); }
long inlined_into_callers(long x) { return uses_small(x) * 2 + small(3); }

static __attribute__((noinline)) long total(int n, ...)
{
	va_list list;
	long r = 0;

	va_start(list, n);
	while (n-- > 0)
		r = r * 2 + va_arg(list, long);
	va_end(list);
	return r IF_FIXED(+ 9);
}
long varargs(long x) { return total(3, x, 2L, x + 1) + total(1, 5L) IF_FIXED(+ total(7, 1L, 2L, 3L, 4L, 5L, 6L, x)); }

static __attribute__((noinline)) struct wide widen(long x) { struct wide w = {x, x * 2 IF_FIXED(+ 1), x * 3}; return w; }
long struct_by_memory(long x) { struct wide w = widen(x); return w.a + w.b * 10 + w.c * 100; }

struct pair { long a; double b; };
static __attribute__((noinline)) struct pair couple(long x) { struct pair p = {x IF_FIXED(+ 5), (double)x * 0.5}; return p; }
long struct_in_registers(long x) { struct pair p = couple(x); return p.a + (long)(p.b * 4); }

#ifdef FIXED
static __attribute__((noinline)) long new_static(long x) { static long n = 3; x += n; return x * 2; }
__attribute__((noinline)) long new_global(long x) { return new_static(x) + plus(x); }
#endif
long new_functions(long x) { return IF_FIXED(new_global(x) + new_static(1) +) times(x); }

static __attribute__((noinline)) long deep(long n, long m) { return (m & 1023) > 1000 || n <= 0 ? 1 IF_FIXED(+ 1) : deep(n - 1, m * 3) + deep(n / 2, m + 1) + n; }
long recursion(long x) { return deep(x & 7, x); }

static __attribute__((noinline)) long last_call(long x) { return IF_FIXED(times(x) + plus)(x + 3) IF_FIXED(- 0); }
long tail_call(long x) { return last_call(x); }

__attribute__((noinline)) long original(long x) { return x * 5 IF_FIXED(+ 3); }
extern long alias_of_it(long) __attribute__((alias("original")));
long aliased(long x) { return original(x) + alias_of_it(x + 1); }

__attribute__((weak, noinline)) long weak_one(long x) { return x - 4 IF_FIXED(- 40); }
extern long missing(long) __attribute__((weak));
long weak_function(long x) { return weak_one(x) + (missing ? 1000 : 1) IF_FIXED(+ 2); }

static long slow(long x) { return x * 6 IF_FIXED(+ 2); }
static long (*resolve(void))(long) { return slow; }
long indirect(long) __attribute__((ifunc("resolve")));
long indirect_function(long x) { return indirect(x) + 1 IF_FIXED(+ 1); }

__attribute__((patchable_function_entry(16, 14), noinline)) static long with_pad(long x) { return x * 8 IF_FIXED(+ 6); }
long padded(long x) { return with_pad(x) + 1; }

static __attribute__((noinline)) long many(long a, long b, int c, char d, long e, long f, short g, long h, double i, float j)
{
	return a + b * 2 + c * 3 + d * 4 + e * 5 + f * 6 + g * 7 + h * 8 + (long)(i * 2) + (long)(j * 4) IF_FIXED(+ g * 100);
}
long many_arguments(long x) { return many(x, 2, 3, (char)x, 5, x, (short)x, 8, (double)x, 1.5f); }
