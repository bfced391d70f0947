// A function that is known under another name now, and whose address was given away.
// changed: setup
// new: callback
// removed: cb
// warned: removed-function
extern int (*kept)(int);
#ifdef NEW
static int callback(int x) { return x + 100; }
void setup(void) { kept = callback; }
#else
static int cb(int x) { return x; }
void setup(void) { kept = cb; }
#endif
