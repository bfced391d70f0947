// A pointer into the middle and behind the end of an array.
// changed: middle
extern int use(int *, int *);
static int ring[16];
int middle(void)
{
#ifdef NEW
	return use(ring + 5, ring + 16);
#else
	return use(ring + 4, ring + 16);
#endif
}
int whole(void) { return use(ring, ring + 16); }
