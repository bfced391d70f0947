// One in a class, and one of the same enumerators that is as it was.
// refused: struct-layout
struct other {
	enum { IDLE, BUSY, DONE };
	int state;
};
struct session {
#ifdef NEW
	enum { DONE, IDLE, BUSY };
#else
	enum { IDLE, BUSY, DONE };
#endif
	int state;
};
void step(session *s, other *o)
{
	if (s->state == session::BUSY)
		s->state = session::DONE;
	if (o->state == other::BUSY)
		o->state = other::DONE;
}
