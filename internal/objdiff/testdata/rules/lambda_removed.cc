// One in front of others is gone: if it was kept, it goes on, and that is said.
// warned: kept-type
// changed: setup(int)
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
#ifndef NEW
	called[2] = [](int x) { return x - 900; };
	kept[2] = hold([k](int x) { return x - 900 * k; });
#endif
	called[0] = [](int x) { return x + 1; };
	kept[0] = hold([k](int x) { return x + k; });
}
