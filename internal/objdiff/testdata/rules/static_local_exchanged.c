// Two static variables of one name, whose blocks change places: which is which is not to be told.
// refused: ambiguous-static
int f(int x)
{
	int r = 0;
#ifdef NEW
	{ static int n; n += 100; r += n * 3; }
	{ static int n; n += 1; r += n; }
	return r + x + 1;
#else
	{ static int n; n += 1; r += n; }
	{ static int n; n += 100; r += n * 3; }
	return r + x;
#endif
}
