// A type has another name, and is the same.
// changed: add
#ifdef NEW
struct sums { int a, b; };
static struct sums total;
#else
struct totals { int a, b; };
static struct totals total;
#endif
#ifdef NEW
int add(int x) { total.a += x; return total.b += total.a + 1; }
#else
int add(int x) { total.a += x; return total.b += total.a; }
#endif
