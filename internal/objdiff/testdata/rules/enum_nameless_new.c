// New enumerators behind the others, of which there are more then; and a lone constant.
// changed: step
#ifdef NEW
enum { IDLE, BUSY, DONE, FAILED, NUM_STATES };
enum { MAX_LENGTH = 200, LINES = 100 };
enum { COLUMNS = 200 };
#else
enum { IDLE, BUSY, DONE, NUM_STATES };
enum { MAX_LENGTH = 100, LINES = 100 };
enum { COLUMNS = 100 };
#endif
struct session { int state, length; };
void step(struct session *s)
{
	if (s->state == BUSY)
		s->state = s->length > MAX_LENGTH + LINES + COLUMNS ? NUM_STATES : DONE;
}
