// Data that is made by assembler outside of functions has another value.
// refused: changed-data
#ifdef NEW
__asm__(".data\n.globl limit\nlimit: .long 4\n.text\n");
#else
__asm__(".data\n.globl limit\nlimit: .long 3\n.text\n");
#endif
extern int limit;
int get(int x) { return limit + x; }
