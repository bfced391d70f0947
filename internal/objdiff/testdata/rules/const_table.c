// A constant table that is private to the file: its readers get the new one.
// changed: weight
// new: weights
// removed: weights
#ifdef NEW
static const int weights[8] = {1, 2, 4, 8, 16, 32, 64, 129};
#else
static const int weights[8] = {1, 2, 4, 8, 16, 32, 64, 128};
#endif
static const int others[8] = {9, 8, 7, 6, 5, 4, 3, 2};
int weight(int i) { return weights[i & 7]; }
int other(int i) { return others[i & 7]; }
