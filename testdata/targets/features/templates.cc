// Templates, inline functions and the standard library.
#include <algorithm>
#include <map>
#include <string>
#include <vector>
#ifdef FIXED
#define IF_FIXED(x) x
#else
#define IF_FIXED(x)
#endif

extern "C" long outside(long x);

template <class T> __attribute__((noinline)) T same(T x) { static T n; n += 1; return x * 2 + n; }
extern "C" long template_same(long x) { return same(x) + same(static_cast<int>(x)) IF_FIXED(+ 5); }

template <class T> __attribute__((noinline)) T changed(T x) { static T n; n += 1; return x * 3 + n IF_FIXED(+ 8); }
extern "C" long template_changed(long x) { return changed(x) + changed(static_cast<short>(x)); }

inline __attribute__((noinline)) long in_line(long x) { return x - 5 IF_FIXED(- 500); }
extern "C" long inline_changed(long x) { return in_line(x) + in_line(3); }

inline __attribute__((noinline)) long &inside() { static long n = 77; return n; }
extern "C" long inline_static(long x) { inside() += x; return inside() IF_FIXED(+ 1); }

template <class T> struct Holder { static T value; };
template <class T> T Holder<T>::value = 33;
inline long inline_variable = 12;
extern "C" long unique_object(long x)
{
	Holder<long>::value += x;
	inline_variable++;
	return Holder<long>::value + inline_variable IF_FIXED(+ Holder<int>::value * 100);
}

extern "C" long new_instance(long x)
{
#ifdef FIXED
	std::map<long, std::vector<short>> m;
	m[x].push_back(3);
	m[x + 1].resize(5, 4);
	return static_cast<long>(m.size() + m[x + 1].size()) + m[x][0];
#else
	return x * 0x12345678;
#endif
}

static std::string kept = "kept";
extern "C" long standard_string(long x)
{
	std::string s = kept + std::to_string(x) IF_FIXED(+ " and more than fits into the object");
	kept = kept.substr(0, 4) + std::to_string(x & 15);
	return static_cast<long>(s.size()) * 100 + s[s.size() / 2] + (s.find('1') != std::string::npos);
}

static std::vector<long> numbers;
extern "C" long standard_vector(long x)
{
	numbers.push_back(x);
	long r = 0;
	for (long n : numbers)
		r = r * 7 + n IF_FIXED(+ 1);
	return r;
}

static std::map<std::string, long> by_name;
extern "C" long standard_map(long x)
{
	by_name[std::to_string(x & 7)] += x;
	long r = 0;
	for (const auto &[name, n] : by_name)
		r += n * name[0] IF_FIXED(+ 2);
	return r;
}

extern "C" long standard_sort(long x)
{
	std::vector<long> v{5, x, 3, x * 2, 9};
	std::sort(v.begin(), v.end(), [](long a, long b) { return IF_FIXED(-) a < IF_FIXED(-) b; });
	return v[0] * 100 + v[4];
}

template <class... T> static long total(T... x) { return (0 + ... + static_cast<long>(x)) IF_FIXED(* 2); }
extern "C" long variadic(long x) { return total(x, 1, 'a', 2.5, x > 3); }

constexpr long power(long b, int n) { return n == 0 ? 1 : b * power(b, n - 1); }
extern "C" long constant_expression(long x) { constexpr long k = power(3, 5 IF_FIXED(+ 1)); return x + k; }

enum class Level : short { low = 1, high = 40 };
static Level level = Level::low;
extern "C" long typed_enum(long x) { level = x & 1 ? Level::high : Level::low; return static_cast<long>(level) IF_FIXED(* 2); }
