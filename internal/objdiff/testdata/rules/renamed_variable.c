// changed: work
// new: counter
// removed: hits
// warned: removed-variable
#ifdef NEW
#define hits counter
#endif
static int hits;
int work(int x) { return hits += x; }
