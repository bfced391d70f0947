// refused: changed-vtable
// allow: vtable
// changed:
// new: Base::extra()
// warned: new-global
struct Base {
	virtual ~Base();
	virtual int one();
#ifdef NEW
	virtual int extra();
#endif
};
Base::~Base() {}
int Base::one() { return 1; }
#ifdef NEW
int Base::extra() { return 2; }
#endif
