// A member is of another enumeration, in which the numbers stand for other things.
// refused: struct-layout
// allow: struct-layout
// changed: high
enum a { A_NO, A_LOW, A_HIGH };
enum b { B_HIGH, B_LOW, B_NO };
struct level {
#ifdef NEW
	enum b is;
#else
	enum a is;
#endif
};
enum a first;
enum b second;
int high(struct level *l)
{
#ifdef NEW
	return l->is == B_HIGH;
#else
	return l->is == A_HIGH;
#endif
}
