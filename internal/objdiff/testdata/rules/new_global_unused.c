// Nothing here uses the new function, but another file may.
// changed:
// new: fresh
// warned: new-global
int base(int x) { return x; }
#ifdef NEW
int fresh(int x) { return x + 1; }
#endif
