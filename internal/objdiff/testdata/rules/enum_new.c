// A new value behind the others.
// changed: busy
#ifdef NEW
enum state { IDLE, BUSY, STARTING };
#else
enum state { IDLE, BUSY };
#endif
struct session { enum state s; };
int busy(struct session *s)
{
#ifdef NEW
	return s->s == BUSY || s->s == STARTING;
#else
	return s->s == BUSY;
#endif
}
