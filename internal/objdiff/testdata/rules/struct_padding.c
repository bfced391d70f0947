// A new member in what was padding: nobody has set it.
// refused: struct-layout
struct session {
	char kind;
#ifdef NEW
	char flag;
#endif
	int id;
};
int get(struct session *s)
{
#ifdef NEW
	return s->flag ? s->id : -1;
#else
	return s->id;
#endif
}
