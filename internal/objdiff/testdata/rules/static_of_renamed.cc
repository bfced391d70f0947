// A function has another parameter, another one another scope: their static variables are the same.
// changed: tick(int)
// warned: new-global removed-function
struct Text { const char *s; };
#ifdef NEW
int check(const char *s, int max) { static int calls; calls += s[0] + max; return calls; }
namespace { __attribute__((noinline)) int count(int x) { static int n; n += x; return n; } }
#define CHECK check("a", 2)
#else
int check(const char *s) { static int calls; calls += s[0]; return calls; }
static __attribute__((noinline)) int count(int x) { static int n; n += x; return n; }
#define CHECK check("a")
#endif
int tick(int x) { return CHECK + count(x); }
