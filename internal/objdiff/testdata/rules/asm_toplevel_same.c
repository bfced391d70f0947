// Code without a function that stays as it is.
// changed: work
__asm__(".section .text.raw,\"ax\",@progbits\n.globl raw\nraw: mov $3, %eax\n ret\n.text\n");
int raw(void);
#ifdef NEW
int work(int x) { return raw() + x * 3; }
#else
int work(int x) { return raw() + x; }
#endif
