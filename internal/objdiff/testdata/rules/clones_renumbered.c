// Clones that the compiler numbers anew go on as they were.
// only: gcc
// changed: first
struct wide { long a, b, c; };
volatile long sink;
static __attribute__((noinline)) long part(const struct wide *w, int mode) { return mode == 3 ? w->a * 3 + sink : w->b * mode + sink; }
static __attribute__((noinline)) long other(const struct wide *w, int mode) { sink = w->c; return mode == 3 ? w->c * 5 + sink : w->a * mode; }
long second(long x) { struct wide w = {x, 1, 2}; return other(&w, 3); }
long first(long x)
{
	struct wide w = {x, x, x};
#ifdef NEW
	return part(&w, 3) + part(&w, 3) * 2;
#else
	return part(&w, 3);
#endif
}
