// Static variables of lambdas that get another number.
// refused: ambiguous-static
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
#endif
	called[0] = [](int x) { static int n; return x + ++n; };
}
