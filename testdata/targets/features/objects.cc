// Objects, classes and what compilers make for them.
#include <cstdlib>
#include <new>
#include <typeinfo>
#ifdef FIXED
#define IF_FIXED(x) x
#else
#define IF_FIXED(x)
#endif

extern "C" long outside(long x);

struct Counter {
	long n;
	explicit Counter(long x) : n(x + outside(0)) {}
	~Counter() { n = -1; }
};
#ifdef FIXED
struct Ready {
	long n;
	explicit Ready(long x) : n(x < 1000000000 ? 77 : x) {}
	~Ready() { n = -1; }
};
#endif
extern "C" long guarded(long x)
{
	static Counter first(7);
	first.n += x;
#ifdef FIXED
	static Ready second(x); // asks nothing that others remember
	return first.n + (second.n == 77 ? 100000 : 0);
#else
	return first.n;
#endif
}

inline Counter &shared_counter() { static Counter c(50); return c; }
extern "C" long guarded_inline(long x) { shared_counter().n += x; return shared_counter().n IF_FIXED(* 2); }

namespace {
long hidden = 3;
struct Hidden {
	virtual ~Hidden() = default;
	virtual long run(long x) { return x + hidden; }
};
struct Deeper : Hidden {
	long run(long x) override { return x * 2 + hidden IF_FIXED(+ 40); }
};
Deeper deeper;
Hidden *volatile which = &deeper;
}
extern "C" long anonymous(long x) { hidden++; return which->run(x) IF_FIXED(+ 1); }

static Counter file_counter(90);
extern "C" long file_object(long x) { file_counter.n ^= x; return file_counter.n IF_FIXED(+ 9); }

struct Shape {
	virtual ~Shape();
	virtual long area(long x) const;
	virtual long edges() const { return 1; }
	long scale = 2;
};
Shape::~Shape() = default;
long Shape::area(long x) const { return x * scale; }
struct Square : Shape {
	long area(long x) const override { return x * x * scale IF_FIXED(+ 17); }
	long edges() const override { return 4; }
};
static Shape *make(long x) { return x & 1 ? new Square : new Shape; }
static Shape *volatile kept = new Square;
extern "C" long virtual_call(long x)
{
	Shape *s = make(x);
	long r = s->area(x) + s->edges() IF_FIXED(+ kept->edges() * 100);
	delete s;
	return r;
}
extern "C" long virtual_changed(long x) { return kept->area(x) + kept->Shape::area(x); }

extern "C" long type_information(long x)
{
	Shape *s = make(x);
	long r = (typeid(*s) == typeid(Square)) + 2 * (typeid(*kept) == typeid(*s)) IF_FIXED(+ 4 * (typeid(*s) == typeid(Shape)));
	delete s;
	return r;
}
extern "C" long cast(long x)
{
	Shape *s = make(x);
	long r = dynamic_cast<Square *>(s) != nullptr ? 10 : 20;
#ifdef FIXED
	r += dynamic_cast<Square *>(kept) != nullptr ? 100 : 200;
#endif
	delete s;
	return r;
}

#ifdef FIXED
struct Circle : Shape {
	long area(long x) const override { return 3 * x * x; }
	virtual long radius() const { return scale + 1; }
};
static Shape *round_one() { return new Circle; }
#endif
extern "C" long new_class(long x)
{
#ifdef FIXED
	Shape *s = round_one();
	long r = s->area(x) + s->edges() + dynamic_cast<Circle *>(s)->radius() + (dynamic_cast<Square *>(s) == nullptr) + (typeid(*s) == typeid(Circle)) * 10;
	delete s;
	return r;
#else
	return x * 0x12345678;
#endif
}

static long destructions;
struct Owner {
	long *p;
	explicit Owner(long x) : p(new long(x)) {}
	__attribute__((noinline)) ~Owner() { destructions += *p IF_FIXED(* 1); delete p; }
};
extern "C" long destroyed(long x) { { Owner o(x); outside(*o.p); } return destructions IF_FIXED(+ 3000); }

struct Pair {
	long a, b;
	__attribute__((noinline)) long sum() const { return a + b IF_FIXED(+ 1); }
	__attribute__((noinline)) long diff() const { return a - b; }
	Pair operator+(const Pair &o) const { return {a + o.a, b + o.b IF_FIXED(+ 2)}; }
};
extern "C" long members(long x) { Pair p{x, 2}, q = p + Pair{1, x}; return q.sum() * 10 + q.diff(); }

static long (Pair::*method)() const = &Pair::sum;
static long Pair::*field = &Pair::b;
extern "C" long member_pointer(long x)
{
	Pair p{x, 5};
	long r = (p.*method)() + p.*field + 100 * (method == &Pair::sum) IF_FIXED(+ 1000 * (method == &Pair::diff));
	return r;
}

template <class F> static __attribute__((noinline)) long call(F f, long x) { return f(x); }
extern "C" long lambda(long x)
{
	static long calls;
	auto f = [&](long y) { calls++; return y * 3 + x IF_FIXED(+ 13); };
	return call(f, x + 1) + calls + call([](long y) { return y IF_FIXED(+ 100); }, 1);
}

static __attribute__((noinline)) long over(long x) { return x + 1; }
static __attribute__((noinline)) long over(double x) { return static_cast<long>(x * 2) IF_FIXED(+ 5); }
static __attribute__((noinline)) long over(const char *s) { return *s; }
extern "C" long overloaded(long x) { return over(x) + over(x * 0.5) + over("text"); }

struct Own {
	long n = 20;
	Own() { n += outside(0) & 1; }
	~Own() { n = 0; }
};
static thread_local Own own;
extern "C" long thread_object(long x) { own.n += x; return own.n IF_FIXED(+ 70); }
thread_local long plain_own = 4;
extern "C" long thread_plain(long x) { plain_own += x; return plain_own IF_FIXED(* 3); }

static long ends;
struct Ending { long n = 1; ~Ending() { ends += n; } };
extern "C" long array_delete(long x) { Ending *a = new Ending[3 IF_FIXED(+ 0)]; a[1].n = x; delete[] a; return ends IF_FIXED(* 5); }

struct Interface { virtual long ask(long) = 0; virtual ~Interface() {} };
struct Answer : Interface { long ask(long x) override { return x - 1 IF_FIXED(- 10); } };
static Answer answer;
static Interface *volatile asked = &answer;
extern "C" long pure_interface(long x) { return asked->ask(x); }

struct Left { virtual ~Left() {} virtual long left(long x) { return x + 1; } long l = 1; };
struct Right { virtual ~Right() {} virtual long right(long x) { return x + 2; } long r = 2; };
struct Both : Left, Right {
	long left(long x) override { return x * 3 + l; }
	long right(long x) override { return x * 5 + r + l IF_FIXED(+ 7); }
};
static Both both;
static Right *volatile as_right = &both;
extern "C" long several_bases(long x) { both.l++; return as_right->right(x) + both.left(x) IF_FIXED(+ 1); }

struct Root { virtual ~Root() {} virtual long id(long x) { return x; } long n = 6; };
struct Mid1 : virtual Root { long m1 = 1; };
struct Mid2 : virtual Root { long id(long x) override { return x * 2 + n + m2 IF_FIXED(+ 33); } long m2 = 2; };
struct Bottom : Mid1, Mid2 {};
static Bottom bottom;
static Mid1 *volatile as_mid = &bottom;
extern "C" long virtual_base(long x) { bottom.n++; return as_mid->id(x) + as_mid->n; }
