// Without debugging information nobody knows whether the variable is still in the source.
// flags: -g0
// refused: folded-static
// allow: static-local
// changed: get
// removed: level put
// warned: no-debug-info removed-function removed-variable
static int level = 3;
#ifdef NEW
int get(int x) { return x; }
#else
int get(int x) { return x * level; }
void put(int x) { level = x; }
#endif
