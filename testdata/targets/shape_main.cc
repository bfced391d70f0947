// Calls the methods of shape.h in every form that C++ has. Link with shape.cc or
// a library made of it; or compile with -DSHAPE_ONE_UNIT, which takes shape.cc in
// here, so that the compiler sees, and may inline, everything.
//
// Commands on standard input: the name of a form (below), answered by
// "NAME = RESULT"; "all" calls every form and ends with "all done". The argument
// of every call is 1000. The first 14 forms are those for which it is known what
// an entry jump and what a vtable slot can catch.
#ifdef SHAPE_ONE_UNIT
#include "shape.cc"
#else
#include "shape.h"
#endif

#include <cstdio>
#include <cstring>
#include <unistd.h>

#define FORM __attribute__((noinline)) static long
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))

constexpr long X = 1000;

// ---- The 14. Each is 1103 (C::fa), 1203 (C::fb), or 1501 (F::fa).
FORM call_c(C *p) { return p->fa(X); }
FORM call_a(A *p) { return p->fa(X); }
FORM call_d(D *p) { return p->fa(X); }
FORM call_cb(C *p) { return p->fb(X); }
FORM call_b(B *p) { return p->fb(X); }
FORM call_f(F *p) { return p->fa(X); }

FORM c_pointer() { return call_c(static_cast<C *>(make_a('C'))); }
FORM a_pointer_c() { return call_a(make_a('C')); }
FORM a_pointer_d() { return call_a(make_a('D')); }
FORM d_pointer() { return call_d(static_cast<D *>(make_a('D'))); }
FORM local_object() {
	C c;
	return c.fa(X);
}
FORM new_object() {
	C *c = new C;
	long r = c->fa(X);
	delete c;
	return r;
}
FORM qualified() { return static_cast<C *>(make_a('D'))->C::fa(X); }
FORM member_pointer() {
	long (C::*f)(long) = &C::fa;
	__asm__ volatile("" : "+m"(f));
	return (static_cast<C *>(make_a('C'))->*f)(X);
}
FORM in_constructor() { return E().seen + X; }
FORM c_pointer_fb() { return call_cb(static_cast<C *>(make_a('C'))); }
FORM b_pointer_c() { return call_b(make_b('C')); }
FORM b_pointer_d() { return call_b(make_b('D')); }
FORM final_pointer() { return call_f(static_cast<F *>(make_a('F'))); }
FORM a_pointer_f() { return call_a(make_a('F')); }

// ---- Others.
FORM inherited() { return make_a('C')->common(X); }              // 1021: A::common, in C's table
FORM base_a() { return make_a('A')->fa(X); }                     // 1011: A::fa
FORM base_b() { return make_b('B')->fb(X); }                     // 1032: B::fb
FORM own_c() { return static_cast<C *>(make_a('C'))->own(X); }   // 1303
FORM own_d() { return static_cast<C *>(make_a('D'))->own(X); }   // 1403
FORM covariant_b() { return make_b('C')->clone()->fb(X); }       // 1203, by a clone made through the thunk
FORM covariant_c() {                                             // 1303
	return static_cast<C *>(make_a('C'))->clone()->own(X);
}
FORM virtual_base() { return make_vb('V')->vf(X); }              // 1604: VB::vf
FORM virtual_l() { return make_vb('L')->vf(X); }                 // 1705: L::vf, through its thunk
FORM virtual_dia() { return make_vb('D')->vf(X); }               // 1705: the same, in Dia's table
FORM l_of_dia() {                                                // 1715: L::lf
	return static_cast<L *>(make_dia())->lf(X);
}
FORM r_of_dia() { return make_dia()->rf(X); } // 1726
FORM dia_of_dia() { return make_dia()->dia(X); } // 1737
FORM construction() {                                            // 1705: L::vf while Dia was made
	return make_dia()->constructed + X;
}
FORM destructor() {                                              // 1001: C::~C ran once
	long before = destroyed_c;
	delete make_b('C');
	return destroyed_c - before + X;
}
FORM twin_left() { return make_twins()->left(X); }               // 3800
FORM twin_right() { return make_twins()->right(X); }             // 3800

static const struct {
	const char *name;
	long (*volatile call)();
} forms[] = {
#define ENTRY(name) {#name, name}
    ENTRY(c_pointer),      ENTRY(a_pointer_c),  ENTRY(a_pointer_d), ENTRY(d_pointer),
    ENTRY(local_object),   ENTRY(new_object),   ENTRY(qualified),   ENTRY(member_pointer),
    ENTRY(in_constructor), ENTRY(c_pointer_fb), ENTRY(b_pointer_c), ENTRY(b_pointer_d),
    ENTRY(final_pointer),  ENTRY(a_pointer_f),
    // the others
    ENTRY(inherited),      ENTRY(base_a),       ENTRY(base_b),      ENTRY(own_c),
    ENTRY(own_d),          ENTRY(covariant_b),  ENTRY(covariant_c), ENTRY(virtual_base),
    ENTRY(virtual_l),      ENTRY(virtual_dia),  ENTRY(l_of_dia),    ENTRY(r_of_dia),
    ENTRY(dia_of_dia),     ENTRY(construction), ENTRY(destructor),  ENTRY(twin_left),
    ENTRY(twin_right),
#undef ENTRY
};

int main() {
	std::setvbuf(stdout, nullptr, _IOLBF, 0);
	std::printf("READY %d\n", getpid());
	char line[128];
	while (std::fgets(line, sizeof line, stdin) != nullptr) {
		line[std::strcspn(line, "\n")] = 0;
		bool all = std::strcmp(line, "all") == 0, known = all;
		for (auto &form : forms) {
			if (!all && std::strcmp(line, form.name) != 0)
				continue;
			known = true;
			std::printf("%s = %ld\n", form.name, form.call());
		}
		if (all)
			std::printf("all done\n");
		if (!known)
			std::printf("what is \"%s\"?\n", line);
	}
}
