// A jump table leads elsewhere; the other function's is not touched.
// changed: pick
int a(int), b(int), c(int), d(int), e(int);
int pick(int x, int y)
{
	switch (x) {
	case 0: return a(y);
	case 1: return b(y + 1);
	case 2: return c(y + 2);
#ifdef NEW
	case 3: return e(y + 4);
	case 4: return d(y + 3);
#else
	case 3: return d(y + 3);
	case 4: return e(y + 4);
#endif
	case 5: return a(y + 5);
	}
	return 0;
}
int other(int x, int y)
{
	switch (x) {
	case 0: return e(y);
	case 1: return d(y + 1);
	case 2: return c(y + 2);
	case 3: return b(y + 3);
	case 4: return a(y + 4);
	case 5: return b(y + 5);
	}
	return 0;
}
