// What a variable leads to is of the old type.
// refused: changed-type
struct a { int x, y; };
struct b { int y, x; };
extern void *get(void);
#ifdef NEW
static struct b *p;
#else
static struct a *p;
#endif
extern struct a one;
extern struct b two;
int first(void) {
	if (!p)
		p = get();
	return p->x + one.x + two.x;
}
