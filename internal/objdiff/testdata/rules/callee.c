// Another callee, by the same instruction.
// changed: caller
int a(int), b(int);
#ifdef NEW
int caller(int x) { return b(x) + 1; }
#else
int caller(int x) { return a(x) + 1; }
#endif
int bystander(int x) { return a(x) + b(x); }
