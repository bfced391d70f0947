// What wrote a static variable is gone, so that compilers fold it into its readers.
// refused: folded-static
// allow: static-local
// changed: get
// removed: level put
// warned: removed-function removed-variable
static int level = 3;
int get(int x) { return x * level; }
#ifndef NEW
void put(int x) { level = x; }
#endif
