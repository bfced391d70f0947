// A number behind the address in an instruction (4, 2 or 1 bytes): what is meant is the same
// variable, and another number is a change.
// changed: set_long set_short
static int a, b;
static short c;
static char d;
static volatile int *pa = &a, *pb = &b;
static volatile short *pc = &c;
static volatile char *pd = &d;
int get(void) { return *pa + *pb + *pc + *pd; }
#ifdef NEW
void set_long(void) { b = 0x12345; }
void set_short(void) { c = 0x1235; }
#else
void set_long(void) { a = 0x12345; }
void set_short(void) { c = 0x1234; }
#endif
void set_char(void) { d = 0x12; }
