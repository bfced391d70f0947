// What a member of a class leads to has another size.
// refused: struct-layout
// allow: struct-layout
// changed: table::at(int)
class table {
	int n;
#ifdef NEW
	long *cells;
#else
	int *cells;
#endif
public:
	__attribute__((noinline)) long at(int i) { return i < n ? cells[i] : 0; }
};
long first(table &t) { return t.at(0); }
