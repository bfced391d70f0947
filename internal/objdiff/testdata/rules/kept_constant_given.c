// A table of functions is given to a function that may keep it.
// refused: kept-constant
// allow: constant
// changed: setup
// new: ops
// removed: ops
struct ops { int (*work)(int), (*stop)(int); };
int one(int), two(int);
#ifdef NEW
static const struct ops ops = { two, one };
#else
static const struct ops ops = { one, two };
#endif
void enlist(const struct ops *);
int setup(int x)
{
	if (x > 3)
		enlist(&ops);
	return x;
}
