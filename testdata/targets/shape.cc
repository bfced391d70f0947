// The methods of shape.h: a shared library, or a part of the program
// (shape_main.cc), as the test likes.
#include "shape.h"

long destroyed_c;

long A::fa(long x) { return x + 10 + a; }
long A::common(long x) { return x + 20 + a; }
A::~A() = default;

long B::fb(long x) { return x + 30 + b; }
B *B::clone() { return new B(*this); }
B::~B() = default;

long C::fa(long x) { return x + 100 + c; }
long C::fb(long x) { return x + 200 + c; }
C *C::clone() { return new C(*this); }
long C::own(long x) { return x + 300 + c; }
C::~C() { destroyed_c++; }

long D::own(long x) { return x + 400 + c; }
D::~D() = default;

E::E() : seen(fa(0)) {}
E::~E() = default;

long F::fa(long x) { return x + 500 + a; }
F::~F() = default;

long VB::vf(long x) { return x + 600 + vb; }
VB::~VB() = default;

// Through a pointer that could be anything's, so that the call takes the slot.
__attribute__((noinline)) static long call_vf(VB *p, long x) { return p->vf(x); }

L::L() { constructed = call_vf(this, 0); }
long L::vf(long x) { return x + 700 + l; }
long L::lf(long x) { return x + 710 + l; }
L::~L() = default;
long R::rf(long x) { return x + 720 + r; }
R::~R() = default;
long Dia::dia(long x) { return x + 730 + d; }
Dia::~Dia() = default;

long Twins::left(long x) { return x * 3 + 800; }
long Twins::right(long x) { return x * 3 + 800; }
Twins::~Twins() = default;

#define FACTORY __attribute__((noinline))

FACTORY A *make_a(char which) {
	switch (which) {
	case 'C': return new C;
	case 'D': return new D;
	case 'F': return new F;
	}
	return new A;
}
FACTORY B *make_b(char which) {
	switch (which) {
	case 'C': return new C;
	case 'D': return new D;
	}
	return new B;
}
FACTORY VB *make_vb(char which) {
	switch (which) {
	case 'L': return new L;
	case 'D': return new Dia;
	}
	return new VB;
}
FACTORY Dia *make_dia() { return new Dia; }
FACTORY Twins *make_twins() { return new Twins; }
