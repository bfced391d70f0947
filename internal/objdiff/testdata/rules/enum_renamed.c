// An enumeration gets a name, and other values.
// refused: struct-layout
#ifdef NEW
enum state { STUCK, IDLE, BUSY, DONE };
#else
enum { IDLE, BUSY, DONE };
#endif
struct session { int state; };
void step(struct session *s)
{
	if (s->state == BUSY)
		s->state = DONE;
}
