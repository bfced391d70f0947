// One without a name is gone, and the others move up. Which it was is told by its enumerators.
// refused: struct-layout
#ifdef NEW
enum { ONE, TWO };
#endif
enum { RED, GREEN, BLUE };
enum { IDLE, BUSY,
#ifndef NEW
	STUCK,
#endif
	DONE };
struct session { int state, color; };
void step(struct session *s)
{
	if (s->state == BUSY)
		s->state = DONE;
#ifdef NEW
	if (s->color == RED)
		s->color = GREEN + TWO;
#else
	if (s->color == RED)
		s->color = GREEN;
#endif
}
