// One array size in a union (without a name, in a struct).
// refused: struct-layout
struct record {
	int kind;
	union {
		char name[8];
#ifdef NEW
		char address[24];
#else
		char address[16];
#endif
	} u;
};
char *get(struct record *r, int i) { return r[i].u.address; }
