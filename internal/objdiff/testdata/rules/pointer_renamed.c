// A structure has another name, and what leads to it is of the same layout.
// changed: first
#ifdef NEW
struct b { int x, y; };
static struct b *p;
#else
struct a { int x, y; };
static struct a *p;
#endif
extern void *get(void);
int first(void) {
	if (!p)
		p = get();
#ifdef NEW
	return p->x + 1;
#else
	return p->x;
#endif
}
