// The callee has not changed, but is part of its caller now.
// changed: outer
// removed: inner
volatile int sink;
#ifdef NEW
static inline __attribute__((always_inline))
#else
static __attribute__((noinline))
#endif
int inner(int x) { return sink = x; }
int outer(int x) { return inner(x) + 1; }
