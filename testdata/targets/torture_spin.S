// void spin_registers(const struct state *want, struct state *got, long level, long loops)
//
// See torture.h. In the loop every general register but rsp, all vector and mask
// registers, the x87 stack and the control words hold known values, the carry
// flag is set (dec leaves it), and the red zone is in use. The frame above rsp
// holds what the function itself needs.

#define VECTOR 0
#define MASK 2048
#define GENERAL 2112
#define RED 2232
#define X87 2360
#define MXCSR 2384
#define FCW 2388
#define CARRY 2390

// The frame.
#define LOOPS 0
#define GOT 8
#define LEVEL 16
#define OLD_MXCSR 24
#define OLD_FCW 28
#define SAVED 32
#define FRAME 168

	.text
	.p2align 4
	.globl spin_registers
	.type spin_registers, @function
spin_registers:
	.cfi_startproc
	push	%rbx
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbx, 0
	push	%rbp
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %rbp, 0
	push	%r12
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %r12, 0
	push	%r13
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %r13, 0
	push	%r14
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %r14, 0
	push	%r15
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset %r15, 0
	sub	$FRAME, %rsp
	.cfi_adjust_cfa_offset FRAME

	mov	%rcx, LOOPS(%rsp)
	mov	%rsi, GOT(%rsp)
	mov	%rdx, LEVEL(%rsp)
	stmxcsr	OLD_MXCSR(%rsp)
	fnstcw	OLD_FCW(%rsp)

	// The vectors and masks.
	cmp	$1, %rdx
	je	1f
	ja	2f
	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	movdqu	VECTOR+\n*64(%rdi), %xmm\n
	.endr
	jmp	3f
1:	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	vmovdqu	VECTOR+\n*64(%rdi), %ymm\n
	.endr
	jmp	3f
2:	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	vmovdqu64 VECTOR+\n*64(%rdi), %zmm\n
	.endr
	.irp n, 1,2,3,4,5,6,7
	kmovq	MASK+\n*8(%rdi), %k\n
	.endr

	// The floating point unit and the control words.
3:	fninit
	fldl	X87+16(%rdi)
	fldl	X87+8(%rdi)
	fldl	X87(%rdi)
	fldcw	FCW(%rdi)
	ldmxcsr	MXCSR(%rdi)

	// The red zone, then the general registers; rdi is the last.
	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	mov	RED+\n*8(%rdi), %rax
	mov	%rax, -128+\n*8(%rsp)
	.endr
	mov	GENERAL+0*8(%rdi), %rax
	mov	GENERAL+1*8(%rdi), %rbx
	mov	GENERAL+2*8(%rdi), %rcx
	mov	GENERAL+3*8(%rdi), %rdx
	mov	GENERAL+4*8(%rdi), %rsi
	mov	GENERAL+5*8(%rdi), %rbp
	mov	GENERAL+6*8(%rdi), %r8
	mov	GENERAL+7*8(%rdi), %r9
	mov	GENERAL+8*8(%rdi), %r10
	mov	GENERAL+9*8(%rdi), %r11
	mov	GENERAL+10*8(%rdi), %r12
	mov	GENERAL+11*8(%rdi), %r13
	mov	GENERAL+12*8(%rdi), %r14
	mov	GENERAL+13*8(%rdi), %r15
	mov	GENERAL+14*8(%rdi), %rdi

	stc
4:	decq	LOOPS(%rsp)
	jnz	4b

	// Everything out again. rdi goes first; it then points to the result.
	mov	%rdi, SAVED(%rsp)
	mov	GOT(%rsp), %rdi
	setc	CARRY(%rdi)
	mov	%rax, GENERAL+0*8(%rdi)
	mov	%rbx, GENERAL+1*8(%rdi)
	mov	%rcx, GENERAL+2*8(%rdi)
	mov	%rdx, GENERAL+3*8(%rdi)
	mov	%rsi, GENERAL+4*8(%rdi)
	mov	%rbp, GENERAL+5*8(%rdi)
	mov	%r8, GENERAL+6*8(%rdi)
	mov	%r9, GENERAL+7*8(%rdi)
	mov	%r10, GENERAL+8*8(%rdi)
	mov	%r11, GENERAL+9*8(%rdi)
	mov	%r12, GENERAL+10*8(%rdi)
	mov	%r13, GENERAL+11*8(%rdi)
	mov	%r14, GENERAL+12*8(%rdi)
	mov	%r15, GENERAL+13*8(%rdi)
	mov	SAVED(%rsp), %rax
	mov	%rax, GENERAL+14*8(%rdi)
	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	mov	-128+\n*8(%rsp), %rax
	mov	%rax, RED+\n*8(%rdi)
	.endr
	stmxcsr	MXCSR(%rdi)
	fnstcw	FCW(%rdi)
	fstpl	X87(%rdi)
	fstpl	X87+8(%rdi)
	fstpl	X87+16(%rdi)
	mov	LEVEL(%rsp), %rdx
	cmp	$1, %rdx
	je	5f
	ja	6f
	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	movdqu	%xmm\n, VECTOR+\n*64(%rdi)
	.endr
	jmp	8f
5:	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
	vmovdqu	%ymm\n, VECTOR+\n*64(%rdi)
	.endr
	jmp	7f
6:	.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
	vmovdqu64 %zmm\n, VECTOR+\n*64(%rdi)
	.endr
	.irp n, 1,2,3,4,5,6,7
	kmovq	%k\n, MASK+\n*8(%rdi)
	.endr
7:	vzeroupper

8:	ldmxcsr	OLD_MXCSR(%rsp)
	fldcw	OLD_FCW(%rsp)
	add	$FRAME, %rsp
	.cfi_adjust_cfa_offset -FRAME
	.irp r, r15, r14, r13, r12, rbp, rbx
	pop	%\r
	.cfi_adjust_cfa_offset -8
	.cfi_restore %\r
	.endr
	ret
	.cfi_endproc
	.size spin_registers, . - spin_registers

	.section .note.GNU-stack, "", @progbits
