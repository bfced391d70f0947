package patchlink

import (
	"debug/elf"
	"strings"

	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchfile"
)

type slotKey struct {
	image  *image
	vaddr  uint64
	offset int64
}

// exceptTable begins the names of sections with language-specific data.
const exceptTable = ".gcc_except_table"

// relocate makes the relocations of a shipped section.
func (u *unit) relocate(s *objfile.Section) error {
	refs, err := references(s)
	if err != nil {
		return u.l.refuse(err)
	}
	if err := u.checkThreadLocals(s, refs); err != nil {
		return u.l.refuse(err)
	}
	for i := 0; i < len(refs); i++ {
		n, err := u.reference(s, refs[i:])
		if err != nil {
			if err := u.l.refuse(err); err != nil {
				return err
			}
			continue
		}
		i += n - 1
	}
	return nil
}

// references gives what the relocations of a section refer to.
func references(s *objfile.Section) ([]objfile.Ref, error) {
	var refs []objfile.Ref
	if s.Flags&elf.SHF_EXECINSTR == 0 {
		for _, r := range s.Relocs {
			start := r.Off
			if y := s.At(int64(r.Off)); y != nil && !strings.HasPrefix(s.Name, exceptTable) {
				start = y.Value
			}
			refs = append(refs, s.Resolve(r, start))
		}
		return refs, nil
	}
	insts, err := s.Decode(0, uint64(len(s.Data)))
	if err != nil {
		return nil, err
	}
	for _, in := range insts {
		refs = append(refs, in.Refs...)
	}
	return refs, nil
}

// keeps reports whether a reference stays within the patch, although what it
// refers to continues something of the base.
func (u *unit) keeps(from *objfile.Section, r objfile.Ref) bool {
	to := r.Sym.Section
	if to == nil || u.ship[to] == nil {
		return false
	}
	code := to.Flags&elf.SHF_EXECINSTR != 0
	switch {
	case code && r.Sym.IsFunc() && r.Off == 0 && u.diff.Twin[r.Sym] != nil && takesAddress(from, r.Reloc):
		return false // of itself: what takes it may outlive the call, and the patch
	case from == to, u.owner[to] != nil && u.owner[from] == u.owner[to]:
		return true // a function and its parts
	case from.Name == recordSection, strings.HasPrefix(r.Sym.Name, indirect):
		return true
	case code && from.Flags&elf.SHF_EXECINSTR == 0 && (r.Off != 0 || r.Reloc.PCRel()):
		return true // jump tables and exception tables lead into their own function
	}
	return u.diff.Twin[r.Sym] == nil
}

// takesAddress reports whether a place in code is a value, and not where a branch leads.
// In front of the field of a branch is its opcode, e8, e9 or 0f 8x; in front of that of a
// memory operand relative to RIP the ModRM byte, with mod 00 and r/m 101.
func takesAddress(s *objfile.Section, r objfile.Reloc) bool {
	switch {
	case s.Flags&elf.SHF_EXECINSTR == 0 || r.Off == 0:
		return false
	case r.PCRel():
		return s.Data[r.Off-1]&0xc7 == 0x05
	}
	return true
}

// reference makes the first of the references: it gives how many it has dealt
// with.
func (u *unit) reference(from *objfile.Section, refs []objfile.Ref) (n int, err error) {
	r := refs[0]
	if r.Reloc.Type == elf.R_X86_64_NONE {
		return 1, nil
	}
	y := r.Sym
	switch v, err := u.takes(from, r); {
	case err != nil:
		return 1, err
	case v == nil:
	case v.presence == Exported:
		return 1, u.leave(from, r)
	default:
		return u.bind(from, refs, v.target)
	}
	if u.keeps(from, r) {
		return 1, u.keep(from, r)
	}
	pre := u.diff.Twin[y]
	switch {
	case y.Index == 0: // no symbol: an absolute number
		return 1, u.fault("unknown-relocation", y, "a relocation of type %v at %s+%#x has no symbol", r.Reloc.Type, from.Name, r.Reloc.Off)
	case pre == nil && y.Where == elf.SHN_COMMON:
		return 1, u.keep(from, r)
	case pre == nil && y.Defined():
		return 1, u.fault("not-shipped", y, "%s+%#x refers to it, and it is neither in the patch nor in the image", from.Name, r.Reloc.Off)
	}
	var t target
	if pre != nil {
		t, err = u.find(pre)
		if isNotInImage(err) {
			// A changed function that the base has only inlined, or a constant that
			// its code has in another form.
			if to := y.Section; to != nil && u.ship[to] != nil && (y.IsFunc() || to.Flags&elf.SHF_WRITE == 0) {
				return 1, u.keep(from, r)
			}
			if y.Section == nil {
				return 1, u.leave(from, r)
			}
		}
	} else {
		var ok bool
		switch at := u.l.global[y.Name]; len(at) {
		case 0:
		case 1:
			return u.bind(from, refs, at[0])
		default:
			return 1, u.fault("ambiguous-code", y, "it was static, is global, and %s and %s each have one", at[0].image.name, at[1].image.name)
		}
		if u.l.fresh[y.Name] {
			return 1, u.keep(from, r) // another object of the patch defines it
		}
		if t, ok, err = u.named(y); err == nil && !ok {
			return 1, u.leave(from, r)
		}
	}
	if err != nil {
		return 1, err
	}
	return u.bind(from, refs, t)
}

// keep leaves a reference to the linker.
func (u *unit) keep(from *objfile.Section, r objfile.Ref) error {
	x := r.Reloc
	n := u.ship[from]
	sym := u.symbol(x.Sym)
	switch x.Type {
	case elf.R_X86_64_32, elf.R_X86_64_32S:
		// Code that is not position-independent.
		kind := patchfile.BindAbs32
		if x.Type == elf.R_X86_64_32S {
			kind = patchfile.BindAbs32S
		}
		if sym.sec == nil {
			return u.needsPIC(from, r)
		}
		u.l.low = true
		u.rec.bindOwn(kind, pointer{n.sym, int64(x.Off)}, pointer{sym, x.Addend})
		return nil
	case elf.R_X86_64_64:
		if n.flags&elf.SHF_WRITE == 0 && sym.sec != nil { // in code: the loader does not write there
			u.rec.bindOwn(patchfile.BindAbs64, pointer{n.sym, int64(x.Off)}, pointer{sym, x.Addend})
			return nil
		}
	case elf.R_X86_64_TPOFF32, elf.R_X86_64_TPOFF64:
		return u.fault("new-thread-local", r.Sym, "%s is compiled for thread-local variables of the program itself, and a new one of the patch cannot be among them", from.Name)
	}
	n.relocs = append(n.relocs, reloc{off: x.Off, typ: x.Type, sym: sym, addend: x.Addend})
	return nil
}

// leave leaves a reference to something undefined to the dynamic linker.
func (u *unit) leave(from *objfile.Section, r objfile.Ref) error {
	x := r.Reloc
	n := u.ship[from]
	switch x.Type {
	case elf.R_X86_64_PLT32, elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX, elf.R_X86_64_TLSGD, elf.R_X86_64_GOTTPOFF:
	case elf.R_X86_64_PC32:
		if !isBranch(from.Data, x.Off) {
			return u.needsPIC(from, r)
		}
		x.Type = elf.R_X86_64_PLT32
	case elf.R_X86_64_64:
		if n.flags&elf.SHF_WRITE == 0 {
			return u.needsPIC(from, r)
		}
	default:
		return u.needsPIC(from, r)
	}
	if r.Sym.Name == dsoHandle {
		n.relocs = append(n.relocs, reloc{off: x.Off, typ: x.Type, sym: u.ownHandle(), addend: x.Addend})
		return nil
	}
	if r.Sym.Name != tlsGetAddr {
		u.l.imports[r.Sym.Name] = true
	}
	var sym *symbol
	if r.Sym.Section == nil {
		sym = u.symbol(x.Sym)
	} else { // of the image, whose own definition another module's may stand in for
		sym = u.obj.undefined(r.Sym.Name, r.Sym.Type, r.Sym.Bind == elf.STB_WEAK)
	}
	n.relocs = append(n.relocs, reloc{off: x.Off, typ: x.Type, sym: sym, addend: x.Addend})
	return nil
}

const (
	dsoHandle  = "__dso_handle"   // by which destructors know their library
	tlsGetAddr = "__tls_get_addr" // what code that uses thread-local variables of a library calls
)

// ownHandle gives a variable that stands for the patch, for destructors of its new
// variables, where the base has none that the patch could use.
func (u *unit) ownHandle() *symbol {
	for _, y := range u.obj.symbols {
		if y.name == dsoHandle && y.sec != nil {
			return y
		}
	}
	s := u.obj.add(&section{name: ".data.rel.ro." + dsoHandle, typ: elf.SHT_PROGBITS, flags: elf.SHF_ALLOC | elf.SHF_WRITE, align: 8, data: make([]byte, 8)})
	s.relocs = []reloc{{typ: elf.R_X86_64_64, sym: s.sym}}
	y := &symbol{name: dsoHandle, typ: elf.STT_OBJECT, sec: s, size: 8}
	u.obj.symbols = append(u.obj.symbols, y)
	return y
}

// isBranch reports whether the 4 bytes at off are what a call or a jump leads to.
func isBranch(code []byte, off uint64) bool {
	if off >= 1 && (code[off-1] == 0xe8 || code[off-1] == 0xe9) {
		return true
	}
	return off >= 2 && code[off-2] == 0x0f && code[off-1]&0xf0 == 0x80 // jcc
}

func (u *unit) needsPIC(from *objfile.Section, r objfile.Ref) error {
	e := u.fault("needs-pic", r.Sym, "the code at %s+%#x holds its address in %d bytes (%v), and it is in another library or may be", from.Name, r.Reloc.Off, r.Reloc.Width(), r.Reloc.Type)
	e.Hint = "compile the object after the change with " + objdiff.Indirectly + " (gcc 12 and later) in addition, or both with -fPIC"
	return e
}

// bind makes the first of the references to something of the base.
func (u *unit) bind(from *objfile.Section, refs []objfile.Ref, t target) (n int, err error) {
	r := refs[0]
	x := r.Reloc
	sec := u.ship[from]
	at := pointer{sec.sym, int64(x.Off)}
	// What the relocation adds to its symbol, it adds to the one that is meant.
	addend := x.Addend
	if x.Sym != r.Sym && x.Sym.Section == r.Sym.Section && x.Sym.Section != nil {
		addend += int64(x.Sym.Value) - int64(r.Sym.Value)
	}
	name := r.Sym.String()
	direct := func(kind patchfile.BindKind) (int, error) {
		switch {
		case t.Kind == Addr:
		case t.Kind == PLT && r.Sym.Section == nil && kind == patchfile.BindAbs64:
			return 1, u.leave(from, r) // the function's own address, which everybody else has too
		case t.Kind == PLT:
		case r.Sym.Section == nil:
			return 1, u.leave(from, r)
		case t.Kind == GOT && t.Own != 0 && strings.HasPrefix(r.Sym.Name, "_ZT"):
			// Type information is compared by its name, and equal vtables are alike.
			t.Vaddr = t.Own
		case t.Kind == GOT && kind == patchfile.BindAbs64 && t.Own != 0 && r.Sym.Bind != elf.STB_LOCAL:
			return 1, u.leave(from, r) // wherever the dynamic linker finds it
		default:
			return 1, u.fault("not-in-image", r.Sym, "only a reference to it is in %s, not itself", t.image.name)
		}
		if (kind == patchfile.BindAbs32 || kind == patchfile.BindAbs32S) && t.image.file.Type() != elf.ET_EXEC {
			return 1, u.needsPIC(from, r)
		}
		u.l.report.Bound++
		u.rec.bind(kind, at, t.image, t.Vaddr, addend, name)
		return 1, nil
	}
	slot := func(key slotKey, addend int64) (int, error) {
		off := u.slotFor(key, name)
		sec.relocs = append(sec.relocs, reloc{off: x.Off, typ: elf.R_X86_64_PC32, sym: u.slots.sym, addend: int64(off) + addend})
		return 1, nil
	}
	switch x.Type {
	case elf.R_X86_64_PC32, elf.R_X86_64_PLT32:
		return direct(patchfile.BindPC32)
	case elf.R_X86_64_PC64:
		return direct(patchfile.BindPC64)
	case elf.R_X86_64_64:
		return direct(patchfile.BindAbs64)
	case elf.R_X86_64_32:
		return direct(patchfile.BindAbs32)
	case elf.R_X86_64_32S:
		return direct(patchfile.BindAbs32S)
	case elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX:
		switch {
		case t.Kind == GOT:
			u.l.report.Bound++
			u.rec.bind(patchfile.BindPC32, at, t.image, t.Vaddr, addend, name)
			return 1, nil
		case t.Kind == PLT && r.Sym.Section == nil:
			return 1, u.leave(from, r)
		case t.Kind == Addr, t.Kind == PLT:
			return slot(slotKey{t.image, t.Vaddr, 0}, addend)
		}
	}
	return u.threadLocal(from, refs, t, addend, slot)
}

// slotFor gives the offset of a word in the patch that holds an address of the
// base, or, if the image is nil, a constant.
func (u *unit) slotFor(key slotKey, name string) uint64 {
	if u.slots == nil {
		u.slots = u.obj.add(&section{name: ".data.hotpatch", typ: elf.SHT_PROGBITS, flags: elf.SHF_ALLOC | elf.SHF_WRITE, align: 8})
	}
	off, ok := u.slot[key]
	if ok {
		return off
	}
	off = uint64(len(u.slots.data))
	u.slot[key] = off
	u.slots.data = le.AppendUint64(u.slots.data, uint64(key.offset))
	if key.image != nil {
		u.l.report.Bound++
		u.rec.bind(patchfile.BindAbs64, pointer{u.slots.sym, int64(off)}, key.image, key.vaddr, 0, name)
	}
	return off
}
