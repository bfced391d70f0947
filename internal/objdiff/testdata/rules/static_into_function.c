// refused: removed-static
#ifdef NEW
int count(void) {
	static int n;
	return ++n;
}
#else
static int n;
int count(void) { return ++n; }
#endif
