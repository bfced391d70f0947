#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>
namespace {
int quiet;
struct Local { virtual ~Local() {} virtual int f(int x) { return x + quiet; } };
struct Derived : Local { int f(int x) override { quiet++; return x * 2; } };
thread_local std::string note = "note";
}
struct Shape { virtual ~Shape(); virtual double area() const = 0; };
struct Square : Shape { double s = 1.5; double area() const override; };
Shape::~Shape() { quiet--; }
double Square::area() const { if (s < 0) throw std::runtime_error("negative side"); return s * s; }
static std::map<std::string, int> &table()
{
	static std::map<std::string, int> m{{"a", 1}, {"bb", 2}};
	return m;
}
template <class T> T twice(T x) { static T last; T r = x + last; last = x; return r + x; }
inline int counter() { static int n; return ++n; }
int run(const std::string &k)
{
	Local *l = k.empty() ? new Local : new Derived;
	int r = l->f((int)k.size());
	delete l;
	try {
		Square q;
		r += (int)q.area() + twice(r) + (int)twice(2.5) + counter();
		if (k == "throw")
			throw std::out_of_range(k + note);
		r += table().at(k);
	} catch (const std::out_of_range &e) {
		std::fprintf(stderr, "no %s\n", e.what());
		return -r;
	} catch (const std::exception &e) {
		std::puts(e.what());
	}
	note += k;
	std::vector<int> v(r & 15, quiet);
	for (int x : v) r += x;
	return r;
}
extern "C" int a_main(int argc, char **argv) { return run(argv[0]) + argc; }
