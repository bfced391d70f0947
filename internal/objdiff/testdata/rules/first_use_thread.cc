// A thread-local variable was initialised with a constant, and is by code in each thread.
// refused: changed-data
// flags: -fPIC
extern unsigned start();
#ifdef NEW
thread_local unsigned id = start();
#else
thread_local unsigned id = 0;
#endif
unsigned next() { return ++id; }
