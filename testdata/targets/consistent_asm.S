// without_cfi(o, x, f): calls f(o, x) and gives its result, from a frame that no
// unwind information describes and that looks like no other: an odd frame
// pointer, and a size that depends on x. Registers that it must keep are changed
// meanwhile.
	.text
	.globl without_cfi
	.type without_cfi, @function
	.p2align 4
without_cfi:
	push	%rbx
	push	%rbp
	push	%r12
	mov	%rsp, %r12
	lea	77(%rsp), %rbp
	mov	%esi, %eax
	and	$0x70, %eax
	sub	%rax, %rsp
	sub	$128, %rsp
	and	$-16, %rsp
	mov	%rdx, %rbx
	xor	$0x55, %rbp
	call	*%rbx
	mov	%r12, %rsp
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret
	.size without_cfi, . - without_cfi
	.section .note.GNU-stack, "", @progbits
