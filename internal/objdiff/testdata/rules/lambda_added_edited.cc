// One in front of another, which is edited as well: what has been kept of that goes on with the old code, and that is said.
// changed: setup(int)
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

void setup(int k) {
#ifdef NEW
	called[2] = [](int x) { return x - 900; };
	called[0] = [](int x) { return x + 100; };
#else
	called[0] = [](int x) { return x + 1; };
#endif
	kept[0] = hold([k](int x) { return x + k; });
}
