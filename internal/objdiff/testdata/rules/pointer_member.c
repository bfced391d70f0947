// What a member leads to is of the old type.
// refused: struct-layout
struct a { int x, y; };
struct b { int y, x; };
struct holder {
#ifdef NEW
	struct b *p;
#else
	struct a *p;
#endif
};
extern struct a one;
extern struct b two;
int first(struct holder *h) { return h->p->x + one.x + two.x; }
