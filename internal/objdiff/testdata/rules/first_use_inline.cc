// The same in an inline function, which other files of the program may have too.
// refused: changed-data
extern unsigned start();
inline unsigned next()
{
#ifdef NEW
	static unsigned id = start();
#else
	static unsigned id = 5;
#endif
	return ++id;
}
unsigned two() { return next() + next(); }
