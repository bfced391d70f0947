// changed: base
// removed: gone
// warned: removed-function
#ifdef NEW
int base(int x) { return x; }
#else
int base(int x) { return x + 2; }
#endif
#ifndef NEW
int gone(int x) { return x + 1; }
#endif
