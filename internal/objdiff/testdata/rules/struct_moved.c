// refused: struct-layout
struct session {
#ifdef NEW
	int state;
	int id;
#else
	int id;
	int state;
#endif
};
int get(struct session *s) { return s->id; }
