// Two functions change places, and with them the numbers of their variables of one name.
// changed: second
volatile int sink;
#ifdef NEW
#define SECOND int second(int x) { static int count = 5; count -= x; return sink = count + 1; }
#else
#define SECOND int second(int x) { static int count = 5; count -= x; return sink = count; }
#endif
#ifdef NEW
SECOND
#endif
int first(int x) { static int count = 5; count += x; return sink = count; }
#ifndef NEW
SECOND
#endif
