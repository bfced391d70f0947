// A table is read only, at places that are computed.
// changed: cost
// new: costs
// removed: costs
#ifdef NEW
static const int costs[] = { 3, 8, 11, 2 };
#else
static const int costs[] = { 3, 8, 10, 2 };
#endif
int cost(const unsigned char *s, int n)
{
	int sum = 0;
	for (int i = 0; i < n; i++)
		sum += costs[s[i] & 3];
	return sum;
}
