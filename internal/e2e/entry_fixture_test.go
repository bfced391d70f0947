package e2e

import (
	"testing"

	"hotpatch/internal/testtarget"
)

// entryAsm has functions whose first bytes are exactly what a test is about. Each
// takes a long in rdi and gives one in rax. Nothing but what is written stands
// between two of them.
const entryAsm = `
	.text
#define FUNCTION(name) .globl name; .type name, @function; name:
#define END(name) .size name, . - name
// A function of one byte, which shuts the function beside it in.
.macro WALL
	.type wall\@, @function
wall\@:	ret
	.size wall\@, 1
.endm

// No room behind and none in front.
	.p2align 4
	WALL
FUNCTION(tight3)
	mov	%edi, %eax
	ret
END(tight3)
FUNCTION(tight4)
	mov	%rdi, %rax
	ret
END(tight4)
FUNCTION(tight_endbr)
	endbr64
	mov	%rdi, %rax
	ret
END(tight_endbr)
FUNCTION(exact5)
	lea	1(%rdi), %rax
	ret
END(exact5)
	WALL

// Padding behind: NOPs of one and of several bytes, int3. A wall closes the front.
	.p2align 4
	WALL
FUNCTION(nops_behind)
	mov	%edi, %eax
	ret
END(nops_behind)
	.nops	7
	WALL
FUNCTION(single_nops_behind)
	mov	%edi, %eax
	ret
END(single_nops_behind)
	nop
	nop
	WALL
FUNCTION(int3_behind)
	mov	%edi, %eax
	ret
END(int3_behind)
	.byte	0xcc, 0xcc
	WALL

// Padding in front only.
	.p2align 4
	WALL
	.nops	14
FUNCTION(pad_in_front)
	mov	%edi, %eax
	ret
END(pad_in_front)
	WALL
	nop
	nop
	nop
	nop
	nop
	nop
FUNCTION(single_nops_in_front)
	mov	%edi, %eax
	ret
END(single_nops_in_front)
	WALL
	.nops	4
FUNCTION(small_pad_in_front)
	mov	%edi, %eax
	ret
END(small_pad_in_front)
	WALL
	.nops	16
FUNCTION(endbr_pad)
	endbr64
	mov	%edi, %eax
	ret
END(endbr_pad)
	WALL

// Loops whose back edge goes to +n. They give 15.
#define LOOP_TO(n) \
	.p2align 4; \
	WALL; \
FUNCTION(loop_to_##n); \
	.nops	n; \
1:	dec	%rdi; \
	jnz	1b; \
	mov	$15, %eax; \
	ret; \
END(loop_to_##n); \
	WALL
LOOP_TO(1)
LOOP_TO(2)
LOOP_TO(3)
LOOP_TO(4)
LOOP_TO(5)
LOOP_TO(7)

// Two that need the padding between them.
	WALL
FUNCTION(shares_a)
	mov	%edi, %eax
	ret
END(shares_a)
	nop
	nop
	nop
	nop
	nop
	nop
FUNCTION(shares_b)
	mov	%edi, %eax
	ret
END(shares_b)
	WALL

// The function reads its own second instruction's bytes.
	WALL
FUNCTION(reads_itself)
	xor	%eax, %eax
2:	lea	2b(%rip), %rdx
	movzbl	(%rdx), %eax
	sub	$0x48, %eax
	add	%rdi, %rax
	ret
END(reads_itself)

// A byte that is no instruction in 64-bit mode, behind a jump over it.
	.p2align 4
FUNCTION(undecodable)
	lea	8(%rdi), %rax
	jmp	3f
	.byte	0x06
3:	ret
END(undecodable)

// Nine bytes, then a wall: room for the short jump and not for the long one.
	.p2align 4
	WALL
FUNCTION(nine)
	lea	9(%rdi), %rax
	nop
	nop
	nop
	nop
	ret
END(nine)
	WALL
	.nops 15
FUNCTION(nine_padded)
	lea	9(%rdi), %rax
	nop
	nop
	nop
	nop
	ret
END(nine_padded)
	WALL

// Entries in front of a page boundary.
#define CROSS(n) \
	.p2align 12; \
	.skip	4096 - n, 0x90; \
FUNCTION(cross##n); \
	lea	n(%rdi), %rax; \
	lea	0(%rax), %rax; \
	nopl	0(%rax); \
	nopl	0(%rax); \
	nopl	0(%rax); \
	ret; \
END(cross##n)
CROSS(1)
CROSS(2)
CROSS(3)
CROSS(4)
	.p2align 4
	.section .note.GNU-stack, "", @progbits
`

// entryNames are the functions of entryAsm.
var entryNames = []string{
	"tight3", "tight4", "tight_endbr", "exact5", "nops_behind", "single_nops_behind", "int3_behind", "pad_in_front",
	"single_nops_in_front", "small_pad_in_front", "endbr_pad", "loop_to_1", "loop_to_2", "loop_to_3", "loop_to_4",
	"loop_to_5", "shares_a", "shares_b", "reads_itself", "undecodable", "nine", "nine_padded", "loop_to_7", "cross1", "cross2", "cross3", "cross4",
}

func entryTarget(t testing.TB, flags ...string) string {
	return testtarget.Build(t, testtarget.Spec{Name: "entry", Flags: append([]string{"-O2"}, flags...),
		Files: map[string]string{"entry.c": callerSource(entryNames), "entry_asm.S": entryAsm, "reserve.c": reserveSource}})
}

// reserveSource reserves, before main runs, all free address space that a near
// jump can reach from the program, if the environment says FAR.
const reserveSource = `
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

static void fill(unsigned long from, unsigned long to) {
	if (from < to && mmap((void *)from, to - from, PROT_NONE,
	                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED) {
		perror("reserve");
		exit(1);
	}
}

__attribute__((constructor)) static void reserve(void) {
	static struct { unsigned long start, end; } used[1000];
	if (getenv("FAR") == NULL)
		return;
	const unsigned long reach = 5UL << 29; // 2.5 GiB
	unsigned long here = (unsigned long)&reserve & ~4095UL, from = here > reach ? here - reach : 0x10000, to = here + reach;
	int n = 0;
	FILE *maps = fopen("/proc/self/maps", "r");
	char line[512];
	while (fgets(line, sizeof line, maps) != NULL && n < 1000)
		if (sscanf(line, "%lx-%lx", &used[n].start, &used[n].end) == 2)
			n++;
	fclose(maps);
	for (int i = 0; i < n && from < to; i++) {
		if (used[i].end <= from)
			continue;
		fill(from, used[i].start < to ? used[i].start : to);
		from = used[i].end;
	}
	fill(from, to);
}
`
