package unwind

import (
	"bytes"

	"hotpatch/elfsym"
	"hotpatch/trampoline"
)

// isCallEnd reports whether the bytes end with a call instruction: call rel32 (e8),
// or call r/m64 (ff /2), with any prefixes (SDM volume 2, "CALL").
func isCallEnd(b []byte) bool {
	n := len(b)
	if n >= 5 && b[n-5] == 0xe8 {
		return true
	}
	for size := 2; size <= 7 && size <= n; size++ {
		if code := b[n-size:]; code[0] == 0xff && code[1]>>3&7 == 2 && operandLen(code[1:]) == size-1 {
			return true
		}
	}
	return false
}

// operandLen gives the length of a ModRM byte with SIB and displacement (SDM
// volume 2, 2.1.5), 0 if the bytes are too short to tell.
func operandLen(b []byte) int {
	mod, rm := b[0]>>6, b[0]&7
	n := 1
	if mod != 3 && rm == 4 {
		if len(b) < 2 {
			return 0
		}
		n++
		if mod == 0 && b[1]&7 == 5 {
			n += 4
		}
	}
	switch {
	case mod == 0 && rm == 5, mod == 2:
		n += 4
	case mod == 1:
		n++
	}
	return n
}

// A return from a signal handler on x86-64 is the system call 15, with the stack
// pointer at the ucontext (rt_sigreturn(2)). glibc and musl, and others.
var sigreturns = [...][]byte{
	{0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05}, // mov $15,%rax; syscall
	{0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05},             // mov $15,%eax; syscall
}

// sigreturn reports whether the next thing that the code at pc does is to return
// from a signal handler. exact says that a thread is about to execute there,
// which can also be at the second instruction.
func (u *Unwinder) sigreturn(pc uint64, exact bool) bool {
	var b [9]byte
	for _, code := range sigreturns {
		if u.mem.read(b[:len(code)], pc) && bytes.Equal(b[:len(code)], code) {
			return true
		}
		if first := uint64(len(code) - 2); exact && u.mem.read(b[:len(code)], pc-first) && bytes.Equal(b[:len(code)], code) {
			return true
		}
	}
	return false
}

// sigcontextRegs gives where the registers are in the ucontext that a signal
// handler gets, in bytes (struct ucontext of <asm/ucontext.h> with struct
// sigcontext at offset 40).
var sigcontextRegs = [numRegs]uint64{
	regR8: 40, regR9: 48, regR10: 56, regR11: 64, regR12: 72, regR13: 80, regR14: 88, regR15: 96,
	regRDI: 104, regRSI: 112, regRBP: 120, regRBX: 128, regRDX: 136, regRAX: 144, regRCX: 152, regRSP: 160, regRA: 168,
}

// Offsets in the ucontext (struct ucontext of <asm/ucontext.h>), and the size of
// it with the siginfo behind it, in bytes.
const (
	ucStack      = 16 // uc_stack.ss_sp
	ucStackSize  = 32 // uc_stack.ss_size
	sigframeSize = 304 + 128
)

// exits are ways to end a thread: what musl's clone does after the start
// function has returned. It has no unwind information.
var exits = [...][]byte{
	// mov %eax,%edi; xor %eax,%eax; mov $60,%al; syscall; hlt
	{0x89, 0xc7, 0x31, 0xc0, 0xb0, 0x3c, 0x0f, 0x05, 0xf4},
}

// threadEnd reports whether the code at pc does nothing but end the thread.
func (u *Unwinder) threadEnd(pc uint64) bool {
	var b [9]byte
	for _, code := range exits {
		if u.mem.read(b[:len(code)], pc) && bytes.Equal(b[:len(code)], code) {
			return true
		}
	}
	return false
}

// entrySize bounds how far an entry point is followed, in bytes.
const entrySize = 256

// entryReturns gives the addresses behind the calls in the straight run of code
// at an image's entry point, as link-time addresses. The kernel or the dynamic
// linker jumps there: nobody is to return to (x86-64 psABI, 3.4.1), so a thread
// that will return to one of these addresses has its outermost frame there. The
// run ends at the first jump of any sort.
func entryReturns(im *elfsym.Image) []uint64 {
	at := im.Entry()
	if at == 0 || !im.Executable(at) {
		return nil
	}
	var code [entrySize]byte
	n := 0
	for n < len(code) && im.ReadVaddr(code[n:n+1], at+uint64(n)) == nil {
		n++
	}
	var list []uint64
	for b := code[:n]; ; {
		in, err := trampoline.Decode(b, at)
		if err != nil {
			return list
		}
		b, at = b[in.Len:], in.Next()
		switch in.Flow {
		case trampoline.Next, trampoline.Nop:
		case trampoline.Call, trampoline.IndirectCall:
			list = append(list, at)
		default:
			return list
		}
	}
}
