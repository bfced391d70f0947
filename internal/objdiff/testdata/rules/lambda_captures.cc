// What is captured has another layout: what has been kept is as it was, and has the old code.
// changed: setup(int, int)
// warned: kept-type
struct Base { virtual int call(int) = 0; };
template <class F> struct Held : Base {
	F f;
	Held(F g) : f(g) {}
	int call(int x) override { return f(x); }
};
template <class F> Base *hold(F f) { return new Held<F>(f); }
extern Base *kept[4];
extern int (*called[4])(int);

void setup(int k, int m) {
#ifdef NEW
	kept[0] = hold([m, k](int x) { return x * m + k; });
#else
	kept[0] = hold([k](int x) { return x + k; });
#endif
}
