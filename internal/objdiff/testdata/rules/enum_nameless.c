// States without the name of a type, which the program keeps in an int.
// refused: struct-layout
// allow: struct-layout
// changed: step
#ifdef NEW
enum { IDLE, STARTING, BUSY, DONE };
#else
enum { IDLE, BUSY, DONE };
#endif
struct session { int state; };
void step(struct session *s)
{
	if (s->state == BUSY)
		s->state = DONE;
}
