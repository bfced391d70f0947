// A thread that is borrowed, with target.c: the stub that borrow.c sends it to. It
// makes the system calls that hotpatch's own stub makes (inject/stub_amd64.S): block
// signals, clone, take signals that came meanwhile, unblock; no flag is changed. The
// thread must not be in a system call.
__asm__(
	".intel_syntax noprefix\n"
	".data\n"
	".balign 64\n"
	".globl bare_slots\n"
	".type bare_slots, @object\n"
	".size bare_slots, 128\n"
	"bare_slots: .fill 16, 8, 0\n"
	"1: .quad 0xfffffffffffbfeff\n" // all signals but SIGKILL and SIGSTOP
	"2: .quad 0\n"
	"3: .quad 0, 0\n"
	"4: .fill 64, 8, 0\n"
	"5:\n"
	".text\n"
	".globl bare_stub\n"
	".type bare_stub, @function\n"
	"bare_stub:\n"
	"mov eax, 14; mov edi, 2; lea rsi, [rip+1b]; lea rdx, [rip+2b]; mov r10d, 8; syscall\n"
	"mov eax, 56; mov edi, 0x50f00; lea rsi, [rip+5b]; mov edx, 0; mov r10d, 0; mov r8d, 0; syscall\n"
	"mov ecx, eax; jrcxz 6f; jmp 7f; 6: jmp 8f; 7:\n"
	"mov eax, 271; mov edi, 0; mov esi, 0; lea rdx, [rip+3b]; lea r10, [rip+2b]; mov r8d, 8; syscall\n"
	"mov eax, 14; mov edi, 2; lea rsi, [rip+2b]; mov edx, 0; mov r10d, 8; syscall\n"
	"mov r15, [rip+bare_slots]; mov r14, [rip+bare_slots+8]; mov r13, [rip+bare_slots+16]; mov r12, [rip+bare_slots+24]\n"
	"mov rbp, [rip+bare_slots+32]; mov rbx, [rip+bare_slots+40]; mov r11, [rip+bare_slots+48]; mov r10, [rip+bare_slots+56]\n"
	"mov r9, [rip+bare_slots+64]; mov r8, [rip+bare_slots+72]; mov rax, [rip+bare_slots+80]; mov rcx, [rip+bare_slots+88]\n"
	"mov rdx, [rip+bare_slots+96]; mov rsi, [rip+bare_slots+104]; mov rdi, [rip+bare_slots+112]\n"
	"jmp [rip+bare_slots+120]\n"
	"8: mov eax, 60; xor edi, edi; syscall\n"
	".size bare_stub, .-bare_stub\n"
	".att_syntax\n");
