// Package trampoline knows x86-64 machine code and nothing else: it decodes a
// function's bytes, judges whether and where its entry can be overwritten with
// a jump, and encodes jumps and islands. It is pure: bytes in, bytes out, no
// process is touched.
//
// The words: F is the address of the function's entry, N the number of bytes
// that a jump overwrites, and (F, F+N) the open interval between them: a thread
// or a return address at F itself is harmless (it runs the new jump), and so is
// one at F+N (it runs what was there before).
//
// All decoding goes through Decode, which wraps golang.org/x/arch/x86/x86asm and
// refuses where it is not sure; nothing else in hotpatch may call x86asm. Used
// alone, version 0.32 of it misleads without an error: it returns wrong lengths
// for vzeroupper and for moves to control registers, gives endbr64, adcx and
// others back as one byte, hides RIP-relative operands of VEX and EVEX
// instructions, and does not extend the sign of RIP-relative displacements.
// The tests compare Decode with objdump over whole libraries.
//
// Instruction formats: Intel SDM volume 2, chapter 2.
package trampoline
