// refused: struct-layout
// allow: struct-layout
// changed: first
struct session {
	int id;
#ifdef NEW
	char name[32];
#else
	char name[16];
#endif
};
char *first(struct session *s, int i) { return s[i].name; }
int id(struct session *s) { return s->id; }
