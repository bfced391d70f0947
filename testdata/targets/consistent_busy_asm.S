// spin_without_cfi(x): spins while held, and gives x. No unwind information
// describes it, and its frame pointer leads nowhere.
	.text
	.globl spin_without_cfi
	.type spin_without_cfi, @function
	.p2align 4
spin_without_cfi:
	push	%rbp
	push	%rbx
	lea	(%rdi,%rdi,8), %rbp
	xor	%ebx, %ebx
	sub	$40, %rsp
1:	cmpl	$0, held(%rip)
	jne	1b
	add	$40, %rsp
	pop	%rbx
	pop	%rbp
	mov	%rdi, %rax
	ret
	.size spin_without_cfi, . - spin_without_cfi
	.section .note.GNU-stack, "", @progbits
