// Types without a scope outside: typeinfo for what is thrown and caught within the file.
// changed: guarded(int)
namespace { struct Local { int n; }; }
int work(int);
int guarded(int x)
{
	try {
		if (x == 3)
			throw Local{x};
		return work(x);
	} catch (const Local &e) {
#ifdef NEW
		return e.n + 1;
#else
		return e.n;
#endif
	}
}
int bystander(int x)
{
	try {
		return work(x);
	} catch (const Local &e) {
		return e.n;
	}
}
