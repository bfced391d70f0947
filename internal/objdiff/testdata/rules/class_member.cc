// A member of a class, of the same size in a base class as well.
// refused: struct-layout
struct Empty {};
struct Also {};
struct Base : Empty, Also { int a; };
struct Session : Base {
	int b;
#ifdef NEW
	int c = 3;
#endif
	int get();
};
int Session::get() { return a + b; }
int use(Session *s) { return s->get() + (int)sizeof *s; }
