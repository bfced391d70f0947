// changed: Base::one()
struct Base {
	virtual ~Base();
	virtual int one();
};
Base::~Base() {}
#ifdef NEW
int Base::one() { return 2; }
#else
int Base::one() { return 1; }
#endif
