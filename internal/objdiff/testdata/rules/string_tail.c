// A string that is the end of another one is still itself.
// changed: fresh
int puts(const char *);
int old(void) { return puts("night"); }
#ifdef NEW
int fresh(void) { return puts("good night"); }
#else
int fresh(void) { return puts("x"); }
#endif
