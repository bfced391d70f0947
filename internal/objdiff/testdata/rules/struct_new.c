// A type that is new, members with other names or signedness: no layout changes.
// changed: get
struct session {
	int id;
#ifdef NEW
	unsigned status;
#else
	int state;
#endif
};
#ifdef NEW
struct extra { int a, b; };
static int sum(struct extra *e) { return e->a * e->b; }
#endif
int get(struct session *s)
{
#ifdef NEW
	struct extra e = {s->id, s->status};
	return sum(&e);
#else
	return s->id + s->state;
#endif
}
