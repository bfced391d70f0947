package unwind

import "hotpatch/trampoline"

// The functions of libgcc that deliver an exception (_Unwind_RaiseException,
// _Unwind_Resume, …) end by becoming the frame that catches it: they write its
// registers over those that they have saved themselves, their return address
// included, and return. From the moment when that begins, their frames are not
// what their unwind information says, and whoever believes it can miss a frame.
// They all end alike (uw_install_context in libgcc/unwind-dw2.c): a call that
// writes the registers, a call of _Unwind_DebugHook, which is empty, and the
// return with the stack pointer that was in %rcx (__builtin_eh_return).

// raise says where in one such function the frame is not to be believed.
type raise struct {
	entry    uint64
	from, to uint64 // both inclusive
}

// delivers reports whether a frame at pc, of a function in [lo, hi) that delivers exceptions,
// is not to be believed: at the end that is described above, and everywhere if the
// function does not have exactly one such end. Precondition: the function's
// unwind information saves %rax and %rdx, which nobody else does.
func (u *Unwinder) delivers(pc, lo, hi uint64) bool {
	r := &u.raises[lo>>4%uint64(len(u.raises))]
	if r.entry != lo || r.to == 0 {
		*r = u.findRaise(lo, hi)
	}
	return r.from <= pc && pc <= r.to
}

// maxRaise bounds the size of such a function, in bytes; they have about 1,000.
const maxRaise = 16 << 10

func (u *Unwinder) findRaise(lo, hi uint64) raise {
	whole := raise{entry: lo, from: lo, to: hi}
	if hi-lo > maxRaise {
		return whole
	}
	var before, last trampoline.Inst // the last two calls
	found := raise{entry: lo}
	exits := 0
	for pc := lo; pc < hi; {
		var b [15]byte
		code := b[:min(hi-pc, 15)]
		if !u.mem.read(code, pc) {
			return whole
		}
		in, err := trampoline.Decode(code, pc)
		if err != nil {
			return whole
		}
		switch {
		case in.Flow == trampoline.Call:
			in.Bytes = nil // they are not kept
			before, last = last, in
		case in.Flow == trampoline.IndirectCall:
			before, last = last, trampoline.Inst{}
		case in.Len == 3 && (string(in.Bytes) == "\x48\x89\xcc" || string(in.Bytes) == "\x48\x8b\xe1"): // mov %rcx,%rsp
			if exits++; exits > 1 || before.Len == 0 || last.Len == 0 || !u.empty(last.Target) {
				return whole
			}
			found.from, found.to = before.Next(), pc+maxInst
		}
		pc = in.Next()
	}
	if exits == 0 {
		return whole
	}
	return found
}

// maxInst is more than what is behind the exit's mov: pop %rcx; jmp *%rcx, or ret.
const maxInst = 15

// empty reports whether a function does nothing but return.
func (u *Unwinder) empty(addr uint64) bool {
	var b [5]byte
	return u.mem.read(b[:1], addr) && b[0] == 0xc3 ||
		u.mem.read(b[:], addr) && string(b[:]) == "\xf3\x0f\x1e\xfa\xc3" // endbr64; ret
}
