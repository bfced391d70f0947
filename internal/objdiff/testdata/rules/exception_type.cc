// The code is the same, what it catches is not.
// changed: guarded(int)
struct Early { int x; };
struct Late { int x; };
int work(int);
int guarded(int x)
{
	try {
		return work(x);
#ifdef NEW
	} catch (const Late &) {
#else
	} catch (const Early &) {
#endif
		return 3;
	}
}
int other(int x)
{
	try {
		return work(x);
	} catch (const Early &) {
		return 4;
	} catch (const Late &) {
		return 5;
	}
}
