// Exceptions through old and new code.
#include <cstdio>
#include <stdexcept>
#include <string>
#ifdef FIXED
#define IF_FIXED(x) x
#else
#define IF_FIXED(x)
#endif

extern "C" long outside(long x);

namespace {
struct Odd : std::runtime_error {
	long n;
	explicit Odd(long x) : std::runtime_error("odd"), n(x) {}
};
struct Plain { long n; };
long cleaned;
struct Clean { long n; ~Clean() { cleaned += n; } };
}

// These two do not change.
__attribute__((noinline)) static long throws(long x) { if (x & 1) throw Odd(x); return x; }
__attribute__((noinline)) static long catches(long (*f)(long), long x)
{
	Clean c{x};
	try {
		return f(x);
	} catch (const Odd &e) {
		return e.n + 1000;
	} catch (const Plain &p) {
		return p.n + 2000;
	} catch (const std::exception &e) {
		return 3000 + e.what()[0];
	}
}

__attribute__((noinline)) static long thrower(long x) { if ((x & 3) == 2 IF_FIXED(|| (x & 3) == 3)) throw Plain{x}; return x; }
extern "C" long thrown_new_caught_old(long x) { return catches(thrower, x) IF_FIXED(+ 1); }

extern "C" long thrown_old_caught_new(long x)
{
	try {
		return throws(x) IF_FIXED(* 2);
#ifdef FIXED
	} catch (const std::runtime_error &e) {
		return 7 + e.what()[1];
	}
#else
	} catch (const Odd &e) {
		return e.n * 3;
	}
#endif
}

extern "C" long thrown_and_caught(long x)
{
	try {
		if (x & 2)
			throw Plain{x IF_FIXED(+ 50)};
		return throws(x);
	} catch (const Plain &p) {
		return p.n;
	} catch (...) {
		return -1 IF_FIXED(- 1);
	}
}

__attribute__((cold, noinline)) static void rarely(long x) { throw Odd(x IF_FIXED(+ 5)); }
static long from_cold(long x)
{
	Clean c{1};
	if (__builtin_expect((x & 3) == 1, 0)) {
		std::string why = "a text of some length, " + std::to_string(x);
		rarely(x + static_cast<long>(why.size()));
	}
	return x IF_FIXED(+ 2);
}
extern "C" long thrown_from_cold(long x) { return catches(from_cold, x); }

extern "C" long rethrown(long x)
{
	try {
		try {
			throws(x);
		} catch (const Odd &e) {
			if (e.n & 2)
				throw;
			return e.n IF_FIXED(+ 90);
		}
	} catch (const std::exception &) {
		return 55 IF_FIXED(+ 1);
	}
	return 0;
}

static long with_cleanups(long x)
{
	Clean a{1}, b{10};
	throws(x);
	Clean c{100};
	throws(x + 1);
	return IF_FIXED(4 +) cleaned;
}
extern "C" long cleaned_up(long x) { return catches(with_cleanups, x) + cleaned; }

extern "C" long caught_by_base(long x)
{
	try {
		throw std::out_of_range(x & 1 ? "yes" : IF_FIXED("new") "no");
	} catch (const std::logic_error &e) {
		return e.what()[0] * 100 + e.what()[1];
	}
}

static long careful(long x) noexcept { return x + 2 IF_FIXED(+ 20); }
extern "C" long not_thrown(long x) { return careful(x); }

static long tried(long x)
try {
	return throws(x) + 1;
} catch (const Odd &e) {
	return e.n IF_FIXED(+ 66);
}
extern "C" long function_try(long x) { return tried(x); }
