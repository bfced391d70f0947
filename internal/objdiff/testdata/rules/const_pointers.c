// A constant table of strings, one of which differs.
// only: gcc
// changed: label
// new: labels
// removed: labels
#ifdef NEW
static const char *const labels[] = {"one", "two", "drei"};
#else
static const char *const labels[] = {"one", "two", "three"};
#endif
const char *volatile sink;
void label(int i) { sink = labels[i]; }
