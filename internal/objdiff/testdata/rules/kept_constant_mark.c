// A string is a mark: what is stored of it is compared with its address.
// refused: kept-constant
// allow: constant
// changed: step
// new: end
// removed: end
#ifdef NEW
static const char end[] = "finished";
#else
static const char end[] = "the end";
#endif
const char *volatile at;
int step(int x)
{
	if (!at)
		at = end;
	return at == end ? x : -x;
}
