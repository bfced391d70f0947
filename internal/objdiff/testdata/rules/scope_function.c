// A static function becomes global, for another file to call.
// changed: helper
volatile int sink;
#ifndef NEW
static
#endif
__attribute__((noinline)) int helper(int x) { return sink = x; }
int caller(int x) { return helper(x) + 1; }
