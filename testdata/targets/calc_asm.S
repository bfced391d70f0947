// Functions whose first bytes are exactly what a test needs, whatever the
// compiler and its flags: all take a long in rdi and give one in rax.

#define FUNCTION(name) .globl name; .type name, @function; name: .cfi_startproc
#define END(name) .cfi_endproc; .size name, . - name

	.text

// Three bytes, and the next function begins at once: nothing fits.
	.p2align 4
FUNCTION(short3)
	mov	%edi, %eax
	ret
END(short3)
FUNCTION(short3_next)
	lea	1(%rdi), %rax
	ret
END(short3_next)

// Three bytes, and then NOPs up to the next function.
	.p2align 4
FUNCTION(short3_padded)
	mov	%edi, %eax
	ret
END(short3_padded)

// The same with int3, which some linkers pad with.
	.p2align 4, 0xcc
FUNCTION(short3_int3)
	mov	%edi, %eax
	ret
END(short3_int3)
	.p2align 4, 0xcc

// A single byte.
FUNCTION(short1_padded)
	ret
END(short1_padded)

// A loop whose back edge goes to +5: a 5-byte jump is fine, a longer one would
// send the loop into its middle.
	.p2align 4
FUNCTION(loop_to_5)
	mov	$0, %eax
1:	add	%rdi, %rax
	dec	%rdi
	jnz	1b
	ret
END(loop_to_5)

// A loop whose back edge goes to +2: not even five bytes can be written.
	.p2align 4
FUNCTION(branch_to_2)
	xor	%eax, %eax
1:	add	%rdi, %rax
	dec	%rdi
	jnz	1b
	ret
END(branch_to_2)

// The first call returns to +9, and the callee blocks while the gate is closed.
	.p2align 4
FUNCTION(call_at_9)
	sub	$8, %rsp
	.cfi_adjust_cfa_offset 8
	call	calc_wait
	add	$8, %rsp
	.cfi_adjust_cfa_offset -8
	inc	%rax
	ret
END(call_at_9)

// The first call returns to +5, which is the first byte behind a 5-byte jump.
// It hands calc_wait a misaligned stack; the second half of the stub mends that.
	.p2align 4
FUNCTION(call_at_5)
	call	calc_wait_realigned
	inc	%rax
	ret
END(call_at_5)

// The first call returns to +3: inside even the shortest jump.
	.p2align 4
FUNCTION(call_at_3)
	push	%rbx
	.cfi_adjust_cfa_offset 8
	call	*%rsi
	pop	%rbx
	.cfi_adjust_cfa_offset -8
	inc	%rax
	ret
END(call_at_3)

	.p2align 4
	.type calc_wait_realigned, @function
calc_wait_realigned:
	.cfi_startproc
	sub	$16, %rsp
	.cfi_adjust_cfa_offset 16
	call	calc_wait
	add	$16, %rsp
	.cfi_adjust_cfa_offset -16
	ret
	.cfi_endproc
	.size calc_wait_realigned, . - calc_wait_realigned

// Begins with endbr64, as under -fcf-protection.
	.p2align 4
FUNCTION(endbr)
	endbr64
	lea	3(%rdi), %rax
	ret
END(endbr)

// The first instruction has a RIP-relative operand.
	.p2align 4
FUNCTION(rip_relative)
	mov	forty(%rip), %rax
	add	%rdi, %rax
	ret
END(rip_relative)

// Nothing but a jump to another function's body.
	.p2align 4
FUNCTION(jump_away)
	lea	1(%rdi), %rdi
	jmp	page_cross
END(jump_away)

// The entry is two bytes in front of a page boundary.
	.p2align 12
	.skip 4094, 0x90
FUNCTION(page_cross)
	lea	5(%rdi), %rax
	ret
END(page_cross)

// Entries at every address modulo 8.
#define MOD(n) \
	.p2align 4; \
	.rept n; nop; .endr; \
FUNCTION(mod##n); \
	mov $n, %eax; \
	add %rdi, %rax; \
	ret; \
END(mod##n)

MOD(0)
MOD(1)
MOD(2)
MOD(3)
MOD(4)
MOD(5)
MOD(6)
MOD(7)
	.p2align 4

	.section .rodata
	.p2align 3
forty:	.quad	40

	.section .note.GNU-stack, "", @progbits
