// Text is given to a function that may keep it, which is not likely.
// changed: setup
// new: text
// removed: text
// warned: kept-constant
#ifdef NEW
static const char text[] = "something new";
#else
static const char text[] = "something";
#endif
int show(const char *, int);
int setup(int x) { return show(text, x) + 1; }
