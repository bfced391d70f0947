// The reverse: the guard is gone.
// refused: removed-static
extern unsigned start();
unsigned next()
{
#ifdef NEW
	static unsigned id = 0;
#else
	static unsigned id = start();
#endif
	return ++id;
}
