// Other files read it too, and would not see the new one.
// refused: changed-data
#ifdef NEW
const int limits[4] = {1, 2, 3, 5};
#else
const int limits[4] = {1, 2, 3, 4};
#endif
int limit(int i) { return limits[i & 3]; }
