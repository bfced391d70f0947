// Classes for everything that a vtable can be: several bases, covariant results,
// inherited slots, a final class, virtual bases with construction vtables,
// destructors, two methods with the same code. Every method gives the number in
// its comment, which includes a member, so that a wrong `this` shows.
//
// The derived classes declare their destructor first: that makes it the key
// function, so a patch that defines another method emits no vtable. A, B and VB
// do not: a patch of A::fa brings its own copy of A's vtable, which refers to
// A's other methods.
#pragma once

// -DSHAPE_NOINLINE makes every method one that is really called.
#ifdef SHAPE_NOINLINE
#define METHOD __attribute__((noinline))
#else
#define METHOD
#endif

struct A {
	long a = 1;
	METHOD virtual long fa(long x);     // x + 10 + a
	METHOD virtual long common(long x); // x + 20 + a
	virtual ~A();
};

struct B {
	long b = 2;
	METHOD virtual long fb(long x); // x + 30 + b
	METHOD virtual B *clone();      // a B
	virtual ~B();
};

// B's part is at +16: calls through it take a thunk.
struct C : A, B {
	~C() override;
	long c = 3;
	METHOD long fa(long x) override; // x + 100 + c
	METHOD long fb(long x) override; // x + 200 + c
	METHOD C *clone() override;      // a C; the result is adjusted, too
	METHOD virtual long own(long x); // x + 300 + c
};

// Inherits the slots of fa and fb.
struct D : C {
	~D() override;
	METHOD long own(long x) override; // x + 400 + c
};

// Calls fa while its C part is being made and it is not yet an E.
struct E : C {
	long seen;
	E();
	~E() override;
};

struct F final : A {
	~F() override;
	METHOD long fa(long x) override; // x + 500 + a
};

// The diamond. vf is called through thunks that look up the offset of the
// virtual base; L's constructor calls it through a construction vtable.
struct VB {
	long vb = 4;
	METHOD virtual long vf(long x); // x + 600 + vb
	virtual ~VB();
};
struct L : virtual VB {
	~L() override;
	long l = 5, constructed;
	L();
	METHOD long vf(long x) override; // x + 700 + l
	METHOD virtual long lf(long x);  // x + 710 + l
};
struct R : virtual VB {
	~R() override;
	long r = 6;
	METHOD virtual long rf(long x); // x + 720 + r
};
struct Dia : L, R {
	~Dia() override;
	long d = 7;
	METHOD virtual long dia(long x); // x + 730 + d
};

// Two methods with the same code: g++ -O2 gives them one address.
struct Twins {
	METHOD virtual long left(long x);  // x * 3 + 800
	METHOD virtual long right(long x); // x * 3 + 800
	virtual ~Twins();
};

// How many objects the destructors have seen, for the tests of destructors.
extern long destroyed_c;

// Made where the compiler of the caller cannot see which class it is.
A *make_a(char which);   // 'A', 'C', 'D', 'F'
B *make_b(char which);   // 'B', 'C', 'D'
VB *make_vb(char which); // 'V', 'L', 'D' (Dia)
Dia *make_dia();
Twins *make_twins();
