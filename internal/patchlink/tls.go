package patchlink

import (
	"bytes"
	"debug/elf"
	"math"
	"slices"

	"hotpatch/internal/objfile"
	"hotpatch/internal/patchfile"
)

// Thread-local variables: x86-64 psABI 1.0, "Thread-Local Storage", and Drepper's
// "ELF Handling For Thread-Local Storage", 4.4. Relaxations are those of 5.5.

// checkThreadLocals refuses a section that uses new variables of the patch and
// those of the base by way of one and the same module: the compiler asks once
// for where the module's variables are, and the patch is another module.
func (u *unit) checkThreadLocals(s *objfile.Section, refs []objfile.Ref) error {
	var fresh, old *objfile.Symbol
	for _, r := range refs {
		if r.Reloc.Type != elf.R_X86_64_DTPOFF32 && r.Reloc.Type != elf.R_X86_64_DTPOFF64 {
			continue
		}
		if u.keeps(s, r) {
			fresh = r.Sym
		} else {
			old = r.Sym
		}
	}
	if fresh == nil || old == nil {
		return nil
	}
	e := u.fault("mixed-thread-locals", fresh, "%s uses this new thread-local variable together with %s, which exists, and the compiler takes both to be of one module", s.Name, old)
	e.Hint = "make the new variable global, or use it in a function of its own"
	return e
}

// threadLocal makes the first of the references, one to a thread-local variable
// of the base. slot makes it lead to a word of the patch instead.
func (u *unit) threadLocal(from *objfile.Section, refs []objfile.Ref, t target, addend int64, slot func(slotKey, int64) (int, error)) (n int, err error) {
	r := refs[0]
	x := r.Reloc
	sec := u.ship[from]
	unknown := func() (int, error) {
		return 1, u.fault("unknown-relocation", r.Sym, "the relocation at %s+%#x is of type %v, and what the image has of it does not fit", from.Name, x.Off, x.Type)
	}
	slots := func(vaddr uint64) (int, error) {
		if t.Kind != TLS || vaddr == 0 {
			return unknown()
		}
		u.l.report.Bound++
		u.rec.bind(patchfile.BindPC32, pointer{sec.sym, int64(x.Off)}, t.image, vaddr, addend, r.Sym.String())
		return 1, nil
	}
	switch x.Type {
	case elf.R_X86_64_TPOFF32:
		if t.Kind == TPOff {
			return 1, u.constant(from, r, t.Offset+addend)
		}
	case elf.R_X86_64_DTPOFF32:
		if t.Kind == TPOff || t.Kind == TLS {
			return 1, u.constant(from, r, t.Offset+addend)
		}
	case elf.R_X86_64_GOTTPOFF:
		if t.Kind == TPOff {
			return slot(slotKey{nil, 0, t.Offset}, addend)
		}
		return slots(t.Slots.TPOff)
	case elf.R_X86_64_TLSGD:
		if t.Kind == TPOff {
			return u.relax(from, refs, dynamicCalls, t.Offset+r.Off)
		}
		return slots(t.Slots.Pair)
	case elf.R_X86_64_TLSLD:
		if t.Kind == TPOff {
			return u.relax(from, refs, moduleCalls, 0)
		}
		return slots(t.Slots.Module)
	}
	return unknown()
}

// constant writes a number into 4 bytes.
func (u *unit) constant(from *objfile.Section, r objfile.Ref, v int64) error {
	if v < math.MinInt32 || v > math.MaxInt32 {
		return u.fault("out-of-reach", r.Sym, "its offset %d among the thread-local variables has no room in 32 bits", v)
	}
	le.PutUint32(u.ship[from].data[r.Reloc.Off:], uint32(v))
	return nil
}

// tlsCall is code that asks for an address, and what the linker makes of it in the
// program itself. Between lea and call, and at the end, there are 4 bytes.
type tlsCall struct {
	lea, call []byte
	direct    []byte
	offset    bool // direct ends with the variable's offset, in 4 more bytes
}

var (
	fsBase = []byte{0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0} // mov %fs:0, %rax

	// lea x@tlsgd(%rip), %rdi; call __tls_get_addr: mov %fs:0, %rax; lea x@tpoff(%rax), %rax
	dynamicCalls = []tlsCall{
		{[]byte{0x66, 0x48, 0x8d, 0x3d}, []byte{0x66, 0x66, 0x48, 0xe8}, slices.Concat(fsBase, []byte{0x48, 0x8d, 0x80}), true},
		{[]byte{0x66, 0x48, 0x8d, 0x3d}, []byte{0x66, 0x48, 0xff, 0x15}, slices.Concat(fsBase, []byte{0x48, 0x8d, 0x80}), true},
	}
	// lea x@tlsld(%rip), %rdi; call __tls_get_addr: mov %fs:0, %rax, with prefixes
	moduleCalls = []tlsCall{
		{[]byte{0x48, 0x8d, 0x3d}, []byte{0xe8}, slices.Concat([]byte{0x66, 0x66, 0x66}, fsBase), false},
		{[]byte{0x48, 0x8d, 0x3d}, []byte{0xff, 0x15}, slices.Concat([]byte{0x66, 0x66, 0x66, 0x66}, fsBase), false},
	}
)

// relax replaces the code that asks for the address of a variable of a library
// by code that knows it, as the linker has done in the program itself. The
// second of the references is the call's.
func (u *unit) relax(from *objfile.Section, refs []objfile.Ref, known []tlsCall, offset int64) (n int, err error) {
	r := refs[0]
	data := u.ship[from].data
	for _, c := range known {
		start := int(r.Reloc.Off) - len(c.lea)
		size := len(c.lea) + 4 + len(c.call) + 4
		if start < 0 || start+size > len(data) || !bytes.Equal(data[start:start+len(c.lea)], c.lea) ||
			!bytes.Equal(data[start+len(c.lea)+4:start+size-4], c.call) ||
			len(refs) < 2 || refs[1].Sym.Name != tlsGetAddr || int(refs[1].Reloc.Off) != start+size-4 {
			continue
		}
		copy(data[start:], c.direct)
		if c.offset {
			if offset < math.MinInt32 || offset > math.MaxInt32 {
				return 1, u.fault("out-of-reach", r.Sym, "its offset %d among the thread-local variables has no room in 32 bits", offset)
			}
			le.PutUint32(data[start+len(c.direct):], uint32(offset))
		}
		return 2, nil
	}
	return 1, u.fault("unknown-relocation", r.Sym, "the code at %s+%#x asks for its address in an unknown way", from.Name, r.Reloc.Off)
}
