// Leaves that spin while held, and keep the address to which they return elsewhere
// than at an aligned word of the stack.
	.text
#define FUNCTION(name) .globl name; .type name, @function; .p2align 4; name:
#define END(name) .size name, . - name

// In a register, as longjmp, vfork, and setcontext have it for some instructions.
// Nothing describes it. It gives x.
FUNCTION(spin_in_register)
	pop	%rdx
	push	$0
	pop	%rax
1:	cmpl	$0, held(%rip)
	jne	1b
	mov	%rdi, %rax
	jmp	*%rdx
END(spin_in_register)

// The same, with unwind information that says so.
FUNCTION(spin_in_register_with_cfi)
	.cfi_startproc
	pop	%rdx
	.cfi_adjust_cfa_offset -8
	.cfi_register %rip, %rdx
	push	$0
	.cfi_adjust_cfa_offset 8
	pop	%rax
	.cfi_adjust_cfa_offset -8
1:	cmpl	$0, held(%rip)
	jne	1b
	mov	%rdi, %rax
	jmp	*%rdx
	.cfi_endproc
END(spin_in_register_with_cfi)

// It calls on a stack that is not aligned to words. It gives x + 3.
FUNCTION(skewed)
	push	%rdi
	call	skewed_arrives@PLT
	pop	%rdi
	sub	$3, %rsp
	call	skewed_spin
	add	$3, %rsp
	lea	3(%rdi), %rax
	ret
END(skewed)
FUNCTION(skewed_spin)
	cmpl	$0, held(%rip)
	jne	skewed_spin
	ret
END(skewed_spin)
	.section .note.GNU-stack, "", @progbits
