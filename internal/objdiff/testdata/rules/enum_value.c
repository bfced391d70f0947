// refused: struct-layout
#ifdef NEW
enum state { IDLE, STARTING, BUSY };
#else
enum state { IDLE, BUSY };
#endif
struct session { enum state s; };
int busy(struct session *s) { return s->s == BUSY; }
