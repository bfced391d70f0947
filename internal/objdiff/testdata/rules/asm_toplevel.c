// Code without a function.
// refused: unnamed-code
#ifdef NEW
__asm__(".section .text.raw,\"ax\",@progbits\n.globl raw\nraw: mov $4, %eax\n ret\n.text\n");
#else
__asm__(".section .text.raw,\"ax\",@progbits\n.globl raw\nraw: mov $3, %eax\n ret\n.text\n");
#endif
int raw(void);
int work(int x) { return raw() + x; }
