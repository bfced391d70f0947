// A static variable of a function was initialised with a constant, and is by code: what it
// holds would be thrown away.
// refused: changed-data
// allow: static-local
// changed: next()
extern unsigned start();
unsigned next()
{
#ifdef NEW
	static unsigned id = start();
#else
	static unsigned id = 0;
#endif
	return ++id;
}
