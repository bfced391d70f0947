// A member and a variable are of another enumeration that goes on with the same numbers.
// changed: high
enum a { A_NO, A_LOW, A_HIGH };
enum b { B_NO, B_LOW, B_HIGH, B_HIGHEST };
#ifdef NEW
struct level { enum b is; };
enum b limit;
#else
struct level { enum a is; };
enum a limit;
#endif
enum a first;
enum b second;
int high(struct level *l)
{
#ifdef NEW
	return l->is == B_HIGH || l->is == B_HIGHEST;
#else
	return l->is == A_HIGH;
#endif
}
