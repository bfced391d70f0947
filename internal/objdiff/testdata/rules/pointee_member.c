// What a member leads to is wider: what the running program has on its heap is not.
// refused: struct-layout
// allow: struct-layout
// changed: length
#include <stddef.h>
#ifdef NEW
typedef unsigned int len_t;
#else
typedef unsigned short len_t;
#endif
struct ring { size_t n; len_t *lens; };
size_t length(struct ring *r, size_t i) { return r->lens[i]; }
