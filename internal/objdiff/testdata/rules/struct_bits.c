// refused: struct-layout
struct flags {
#ifdef NEW
	unsigned a : 4, b : 2;
#else
	unsigned a : 3, b : 2;
#endif
};
int get(struct flags *f) { return f->b; }
