// A new variable that is initialised by code, and one that already was.
// changed: next()
extern unsigned start(), step();
unsigned next()
{
	static unsigned count;
#ifdef NEW
	static unsigned by = step();
	static unsigned id = start() + 1;
#else
	static unsigned id = start();
	const unsigned by = 1;
#endif
	++count;
	return id += by + count;
}
