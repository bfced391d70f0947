// A member has another name, and leads to something else.
// refused: struct-layout
struct list {
	int n;
#ifdef NEW
	int *lengths;
#else
	short *lens;
#endif
};
int first(struct list *l)
{
#ifdef NEW
	return l->lengths[0];
#else
	return l->lens[0];
#endif
}
