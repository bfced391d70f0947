// The patches of call.cc: the same work in new functions, with -DMETHOD for the virtual
// one.
#include "call.h"

#ifdef METHOD
long Thing::method(long x) { return x + 1; }
#else
long plain(long x) { return x + 1; }
#endif
