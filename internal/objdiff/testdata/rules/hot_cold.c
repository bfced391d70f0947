// A function that moves to the seldom run ones, and one that is often run.
// changed: often seldom
int work(int);
#ifdef NEW
__attribute__((cold)) int seldom(int x) { return work(x) + 2; }
__attribute__((hot)) int often(int x) { return work(x) + 4; }
#else
int seldom(int x) { return work(x) + 1; }
__attribute__((hot)) int often(int x) { return work(x) + 3; }
#endif
