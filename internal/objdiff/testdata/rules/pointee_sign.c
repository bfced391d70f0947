// Numbers of another signedness under another name, and bytes.
// changed: get put
#include <stdint.h>
struct buffer {
#ifdef NEW
	const uint8_t *start;
	unsigned *count;
	void *owner;
#else
	char *start;
	int *count;
	long *owner;
#endif
};
static
#ifdef NEW
unsigned char *
#else
signed char *
#endif
	last;
int get(struct buffer *b) { return b->start[*b->count / 2] + *last; }
void put(void *p)
{
	last = p;
#ifdef NEW
	++*last;
#endif
}
