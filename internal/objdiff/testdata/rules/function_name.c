// __func__ is a constant like others: one that is numbered anew or elsewhere is no change.
// changed: first
void note(const char *, int);
#ifdef NEW
int first(int x) { note(__func__, x); return x + 1; }
#else
int first(int x) { return x + 1; }
#endif
int second(int x) { note(__func__, x); return x + 2; }
int third(int x) { note(__func__ + 2, x); return x + 3; }
