// flags: -fcommon
// refused: changed-data
#ifdef NEW
long counters[5];
#else
long counters[4];
#endif
long get(int i) { return counters[i]; }
