// A table of functions differs whose address the program stores: objects that exist have the old one.
// refused: kept-constant
// allow: constant
// changed: setup
// new: ops
// removed: ops
struct ops { int (*work)(int); };
int one(int), two(int);
#ifdef NEW
static const struct ops ops = { two };
#else
static const struct ops ops = { one };
#endif
const struct ops *volatile current;
void setup(void) { current = &ops; }
