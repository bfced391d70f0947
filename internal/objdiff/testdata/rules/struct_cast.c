// The type is only reached by a cast.
// refused: struct-layout
struct session {
	int id;
#ifdef NEW
	long extra;
#endif
	int state;
};
int get(void *s) { return ((struct session *)s)->state; }
