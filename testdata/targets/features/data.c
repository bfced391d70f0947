/* Variables and constants. */
#ifdef FIXED
#define IF_FIXED(x) x
#else
#define IF_FIXED(x)
#endif

static int hits;
static int doubled = 2;
long statics(long x) { hits++; doubled += 2; return hits + x * doubled IF_FIXED(+ 1000); }

static int other_count(int x) { static int count = 50; return count += x & 1; }
#ifdef FIXED
/* A static variable of a known name in front of others: they are numbered anew. */
static __attribute__((noinline)) int new_count(int x) { static int count = 7; count += x; x = count; count = 7; return x; }
#endif
long static_locals(long x)
{
	static int last;
	static int count = 3;
	long was = last;

	last = (int)x;
	count += other_count((int)x);
	return count * 100 + was IF_FIXED(+ new_count(100000));
}

static long sum(const char *s) { long h = 0; while (*s) h = h * 31 + *s++; return h; }
long strings(long x)
{
	const char *s = x & 1 ? "an old text" : IF_FIXED("new and longer") "tail";
	return sum(s) + sum(IF_FIXED("another ") "text" + (x & 3));
}

static const char *const names[] = {"zero", "one", "two", IF_FIXED("drei") "three", "four", "tail"};
static const char *current = "none";
long string_table(long x) { long r = sum(current); current = names[x & 1]; return r + sum(names[(x & 7) % 6]); }

extern long outside(long);
long jump_table(long x)
{
	switch (x & 15) {
	case 0: return outside(x) + 1;
	case 1: return x * 3;
	case 2: return outside(x * 5) - 1;
	case 3: return x ^ 77;
	case 4: return outside(x) * 9;
	case 5: return -x;
	IF_FIXED(case 6: return outside(x) + 600000;)
	case 7: return x / 3;
	case 8: return outside(x - 1) IF_FIXED(+ 80000);
	case 9: return x * x;
	IF_FIXED(case 11: return 11;)
	}
	return outside(x);
}

long value_table(long x)
{
	switch (x & 7) {
	case 0: return 17;
	case 1: return 4;
	case 2: return 99;
	case 3: return 12 IF_FIXED(+ 1);
	case 4: return 55;
	case 5: return 3;
	IF_FIXED(case 6: return 77;)
	}
	return 0;
}

long float_constants(long x)
{
	double d = (double)x * 3.5 + 0.125 IF_FIXED(+ 1000.75);
	float f = (float)x * 1.5f IF_FIXED(+ 3.25f);
	return (long)(d * 8) + (long)(f * 4) + (long)(d > 70.5 ? -d : d);
}

static double average = 10.25;
long float_state(long x) { average = average * 0.5 + (double)(x & 255); return (long)(average * 16) IF_FIXED(* 2); }

/* Nothing writes to it before the change, so that its value is in the code of its readers. */
static int factor = 3;
static __attribute__((noinline)) long read_factor(long x) { return x * factor; }
long static_written(long x)
{
#ifdef FIXED
	long r;
	factor = 5;
	r = read_factor(x * 0x12345) / 7;
	factor = 3;
	return r;
#else
	return read_factor(x * 0x12345) / 7;
#endif
}

#ifdef FIXED
static int fresh = 40;
static int fresh_zero;
int fresh_global = 4000;
static const int fresh_table[] = {5, 6, 7, 8};
static int *fresh_pointer = &fresh;
static int *old_pointer = &doubled;
#endif
long new_data(long x)
{
#ifdef FIXED
	static long fresh_local = 400000;
	fresh_zero += (int)x;
	x = fresh_zero + fresh_table[x & 3] + *fresh_pointer + fresh_global + fresh_local + *old_pointer;
	fresh_zero = 0;
#endif
	return x * 0x12345678;
}

static int ring[16] = {1, 2, 3};
static int ring_at;
long interior(long x)
{
	int *p, *end = ring + 16;
	long r = 0;

	ring[ring_at++ & 15] = (int)x;
	for (p = ring IF_FIXED(+ 3); p != end; p++)
		r = r * 3 + *p;
	return r + ring[15 - (x & 15)] + end[-1];
}

static int flag32 = 1;
static short flag16 = 2;
static char flag8 = 3;
static long flag64 = 4;
static volatile int *watched[4] = {&flag32};
long immediates(long x)
{
	long r = flag32 * 7L + flag16 * 11 + flag8 * 13 + flag64 * 17;

	if (watched[x & 3] == &flag32 && flag8 == 99)
		r++;
	flag32 = 0x12345;
	flag16 = 0x1234;
	flag8 = 0x12;
	flag64 = 0x123456;
	if (x & 1) {
		flag32 = 5;
		flag16 = 6;
		flag8 = 7;
		flag64 = -8;
	}
	return r IF_FIXED(+ 10000 * (flag8 == 7));
}

static long zeroed[64];
long zeroed_array(long x) { zeroed[x & 63] += x; return zeroed[x & 63] + zeroed[(x + 1) & 63] IF_FIXED(+ 5); }

static struct { int a, b; long c; struct { short d; char e[5]; } in; } state = {1, 2, 3, {4, "abcd"}};
long structure(long x)
{
	state.a += (int)x;
	state.b ^= (int)x;
	state.c -= x;
	state.in.d = (short)x;
	state.in.e[x & 3] = (char)x;
	return state.a + state.b * 3L + state.c * 5 + state.in.d + state.in.e[1] IF_FIXED(- state.in.e[2] * 1000);
}

static long *where = &zeroed[3];
static long **place = &where;
long data_pointer(long x) { long r = **place; where = &zeroed[x & 63]; return r IF_FIXED(+ (where == *place)); }

static long double precise = 1.5L;
long long_double(long x) { precise = precise / 2 + x; return (long)(precise * 4.25L) IF_FIXED(+ (long)(x * 1.75L)); }

long vector_constant(long x)
{
	int v[8], i;
	long r = 0;

	for (i = 0; i < 8; i++)
		v[i] = (int)x + i * 3 IF_FIXED(+ 7);
	for (i = 0; i < 8; i++)
		r += v[i] * (i + 2L);
	return r;
}
