// Bytes that are no instruction: compared as they are.
// changed: odd
#ifdef NEW
int odd(int x) { __asm__ volatile(".byte 0x06, 0x07, 1"); return x; }
#else
int odd(int x) { __asm__ volatile(".byte 0x06, 0x07, 2"); return x; }
#endif
int puts(const char *);
int same(int x) { __asm__ volatile(".byte 0x06, 0x07, 2"); puts("as before"); return x; }
