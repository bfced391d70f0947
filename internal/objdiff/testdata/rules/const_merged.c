// A constant table that clang puts among those that linkers merge is compared and shipped
// by its content: it has no place of its own in a program.
// only: clang
// changed: work
static const int table[8] = {3, 1, 4, 1, 5, 9, 2, 6};
int work(int x)
{
#ifdef NEW
	return table[x & 7] * 2;
#else
	return table[x & 7];
#endif
}
