// Thread-local variables that are there go on.
// changed: work
static __thread int depth;
__thread int level = 3;
int work(int x)
{
	depth += x;
#ifdef NEW
	level += 2;
#else
	level += 1;
#endif
	return depth + level;
}
int other(int x) { return depth * x + level; }
