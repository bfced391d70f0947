// A new string shifts the numbers that clang gives to the functions that initialise
// variables, which have run: they are known by what they initialise.
// changed: words()
// only: clang
// flags: -O0
struct Box { Box(const char *); ~Box(); long n; };
static Box first("first");
#ifdef NEW
const char *words() { return "more words"; }
#else
const char *words() { return 0; }
#endif
static Box second("second"), third("third");
long sum() { return first.n + second.n + third.n; }
