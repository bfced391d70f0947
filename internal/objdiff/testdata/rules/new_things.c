// A new function, static function, variable and static variable.
// changed: work
// new: counter helper public_helper total
// warned: new-global
int puts(const char *);
#ifdef NEW
int total = 7;
static int counter;
__attribute__((noinline)) static int helper(int x) { return x * ++counter; }
__attribute__((noinline)) int public_helper(int x) { return x + total++; }
#endif
int work(int x)
{
#ifdef NEW
	return helper(x) + public_helper(x);
#else
	return x;
#endif
}
