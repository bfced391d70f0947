// A type that has a name by typedef only.
// refused: struct-layout
typedef struct {
#ifdef NEW
	double id;
#else
	long id;
#endif
} session;
int get(session *s) { return (int)s->id; }
