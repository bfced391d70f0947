// The same in namespaces.
// refused: folded-static
namespace outer {
namespace {
long level = 3;
}
static int other = 4;
long get(long x) { return x * level + other; }
void put(int x)
{
#ifdef NEW
	(void)x;
#else
	level = other = x;
#endif
}
}
