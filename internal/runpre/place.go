package runpre

import (
	"debug/elf"
	"fmt"
	"slices"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
)

// Placement is where the functions and variables of one object are in an image.
// It is a patchlink.Base.
type Placement struct{ m *matcher }

var _ patchlink.Base = (*Placement)(nil)

// State says what is known of a function.
type State string

// The states.
const (
	Placed    State = "placed"       // its code is in the image, once
	Differs   State = "differs"      // the image has other code for it
	Absent    State = "not in image" // the image has no code of it: it was inlined everywhere, or not used
	Ambiguous State = "ambiguous"    // its code is there more than once, or too short to tell from other code
	Unknown   State = "not found"    // its code is not found, and nothing says that it must not be there
)

// Verdict is what is known of one function of the object.
type Verdict struct {
	Symbol *objfile.Symbol
	State  State
	Vaddr  uint64   // if it is placed, or where the other code is, 0 if that is not known
	Size   uint64   // bytes in the image, if it is placed
	Places []uint64 // candidates, if it is ambiguous
	Why    string   // the first difference
}

// Verdicts gives what is known of each function, by section and offset.
func (p *Placement) Verdicts() []Verdict {
	var list []Verdict
	for _, f := range p.m.funcs {
		list = append(list, p.m.verdict(f))
	}
	return list
}

func (m *matcher) verdict(f *function) Verdict {
	v := Verdict{Symbol: f.syms[0]}
	k := factKey{f.key(), atAddr}
	at, told := m.known[k]
	switch {
	case m.bad[k] != nil:
		v.State, v.Vaddr, v.Why = Differs, at, m.bad[k].Error()
	case f.err != nil:
		v.State, v.Why = Unknown, f.err.Error()
	case f.placed != nil && !m.agrees(f.placed):
		v.State, v.Vaddr, v.Why = Differs, f.placed.addr, "what it refers to contradicts what other code refers to"
	case f.placed != nil:
		v.State, v.Vaddr, v.Size = Placed, f.placed.addr, f.placed.end-f.placed.addr
	case f.absent && !told:
		v.State = Absent
	case f.many || len(f.cands) > 0 && !told && len(f.named) == 0:
		v.State = Ambiguous
		for _, s := range f.cands {
			v.Places = append(v.Places, s.addr)
		}
		v.Why = fmt.Sprintf("%d places have code like it, and nothing that refers to them tells which is meant", len(f.cands))
		switch {
		case f.many:
			v.Why = fmt.Sprintf("more than %d places have code like it, or more than %d begin like it", most, crowd)
		case len(f.cands) == 1:
			v.Why = fmt.Sprintf("only the code at %#x is like it, and its %d bytes are too few to tell", f.cands[0].addr, f.hi-f.lo)
		}
	case told || len(f.named) > 0:
		v.State, v.Vaddr = Differs, at
		switch {
		case f.miss != nil:
			v.Vaddr, v.Why = f.missAt, f.miss.Error()
		case len(f.cands) > 1:
			v.State, v.Why = Ambiguous, fmt.Sprintf("%d symbols of its name have code like it", len(f.cands))
		default:
			v.Why = "what it refers to contradicts what other code refers to"
		}
	default:
		v.State = Unknown
	}
	return v
}

// Check refuses those of the functions that are to be replaced whose code is not
// exactly that of the image: that is what runs. A function that a complete symbol
// table does not have is let pass. The faults are "code-differs",
// "ambiguous-code" and "code-not-found".
func (p *Placement) Check(changed []*objfile.Symbol) error {
	var list fault.List
	for _, y := range changed {
		if f := p.m.funcAt(y); f != nil {
			if e := p.refusal(y, p.m.verdict(f)); e != nil {
				list = append(list, e)
			}
		}
	}
	return list.ErrOrNil()
}

// Has reports whether the image has the code of all of some functions, and exactly that.
func (p *Placement) Has(functions []*objfile.Symbol) bool {
	return !slices.ContainsFunc(functions, func(y *objfile.Symbol) bool {
		f := p.m.funcAt(y)
		return f == nil || p.m.verdict(f).State != Placed
	})
}

func (p *Placement) refusal(y *objfile.Symbol, v Verdict) *fault.Error {
	e := &fault.Error{Kind: fault.Unfit, What: "cannot replace " + elfsym.Demangle(y.Name), Where: p.m.im.name, Why: v.Why, Details: v.Places}
	switch v.State {
	case Differs:
		e.Code, e.Hint = "code-differs", "compile with the compiler and the flags of the build that runs"
	case Ambiguous:
		e.Code, e.Hint = "ambiguous-code", "give the debug file of the image"
	case Unknown:
		e.Code, e.Hint = "code-not-found", "give the debug file of the image, or compile with the compiler and the flags of the build that runs"
		if v.Why == "" {
			e.Why = "no code of the image is like it, and there is no symbol table to say that it was inlined everywhere or is not used"
		}
	default:
		return nil
	}
	if len(v.Places) == 0 {
		e.Details = nil
	}
	return e
}

// Globals gives where the image has global symbols that the object defines or refers to, for
// MatchWith.
func (p *Placement) Globals() map[string]uint64 {
	list := make(map[string]uint64)
	for _, y := range p.m.pre.Symbols {
		k := factKey{keyOf(y), atAddr}
		at, ok := p.m.known[k]
		if !ok || y.Name == "" || y.Bind == elf.STB_LOCAL || y.Type == elf.STT_TLS || y.Type == elf.STT_GNU_IFUNC || p.m.bad[k] != nil {
			continue
		}
		if f := p.m.funcAt(y); f != nil && p.m.verdict(f).State != Placed {
			continue
		}
		list[y.Name] = at
	}
	return list
}

// Libraries gives the sonames that the image needs.
func (p *Placement) Libraries() []string { return p.m.im.file.Needed() }

func (p *Placement) target() patchlink.Target {
	return patchlink.Target{Image: p.m.im.file, Module: p.m.im.name}
}

func (p *Placement) fault(code string, y *objfile.Symbol, format string, args ...any) error {
	return &fault.Error{Kind: fault.Unfit, Code: code, What: "cannot tell where " + elfsym.Demangle(y.String()) + " is", Where: p.m.im.name, Why: fmt.Sprintf(format, args...)}
}

// Find gives where a symbol of the object is. The faults are "contradiction",
// "ambiguous-code", "unsolved-symbol", and patchlink.NotInImage.
func (p *Placement) Find(y *objfile.Symbol) (patchlink.Target, error) {
	m, t, k := p.m, p.target(), keyOf(y)
	for s := atAddr; s <= tlsOwner; s++ {
		if err := m.bad[factKey{k, s}]; err != nil {
			return t, p.fault("contradiction", y, "%v", err)
		}
	}
	if y.Type == elf.STT_TLS || m.thread(k) {
		return p.threadLocal(y)
	}
	at, hasAddr := m.known[factKey{k, atAddr}]
	got, hasGOT := m.known[factKey{k, atGOT}]
	plt, hasPLT := m.known[factKey{k, atPLT}]
	if v := m.im.imports[y.Name]; v != 0 && y.Section == nil && !hasAddr {
		at, hasAddr = v, true
	}
	// What an indirect function's symbol has for an address is its resolver.
	indirect := y.Type == elf.STT_GNU_IFUNC
	if !hasAddr && !indirect {
		var err error
		if at, hasAddr, err = p.bySymbol(y); err != nil {
			return t, err
		}
	}
	if f := m.funcAt(y); f != nil && f.placed != nil {
		t.Size = f.placed.end - f.placed.addr
	} else if y.Section != nil {
		t.Size = y.Size
	}
	switch {
	case hasGOT && !y.IsFunc() && m.im.relocs[got].name != "": // wherever the dynamic linker finds it
		t.Kind, t.Vaddr = patchlink.GOT, got
		for _, s := range m.im.named(y) {
			t.Own = s.value
		}
	case hasAddr && !indirect:
		t.Vaddr = at
	case hasGOT && !indirect:
		t.Kind, t.Vaddr = patchlink.GOT, got
	case hasPLT:
		t.Kind, t.Vaddr = patchlink.PLT, plt
	case hasGOT:
		t.Kind, t.Vaddr = patchlink.GOT, got
	default:
		return t, p.unsolved(y)
	}
	return t, nil
}

// bySymbol gives the address of a symbol that no placed code refers to, if a
// symbol table has exactly one of its name.
func (p *Placement) bySymbol(y *objfile.Symbol) (uint64, bool, error) {
	if y.Type == elf.STT_SECTION || y.Name == "" {
		return 0, false, nil
	}
	var at uint64
	n := 0
	for _, s := range p.m.im.named(y) {
		if s.typ == elf.STT_TLS || s.typ == elf.STT_GNU_IFUNC || n > 0 && s.value == at {
			continue
		}
		at = s.value
		n++
	}
	if n > 1 {
		return 0, false, p.fault("ambiguous-code", y, "%d symbols have its name, and no code that refers to it tells which is meant", n)
	}
	return at, n == 1, nil
}

// unsolved says why a symbol has no place.
func (p *Placement) unsolved(y *objfile.Symbol) error {
	m := p.m
	if f := m.funcAt(y); f != nil {
		switch v := m.verdict(f); v.State {
		case Ambiguous:
			return p.fault("ambiguous-code", y, "%s", v.Why)
		case Differs, Unknown:
			return p.fault("unsolved-symbol", y, "no code that was found in the image refers to it, and its own was not found")
		}
	}
	if _, imported := m.im.imports[y.Name]; imported || y.Section != nil || m.im.full {
		return p.fault(patchlink.NotInImage, y, "no code that was found in the image refers to it")
	}
	return p.fault("unsolved-symbol", y, "no code that was found in the image refers to it, and there is no symbol table")
}

// Named gives where a symbol is that the object before the change does not refer
// to, if a symbol table has exactly one global one of the name.
func (p *Placement) Named(y *objfile.Symbol) (t patchlink.Target, ok bool, err error) {
	t = p.target()
	for _, s := range p.m.im.names[y.Name] {
		if s.bind == elf.STB_LOCAL || s.typ == elf.STT_GNU_IFUNC || s.typ == elf.STT_TLS || ok && s.value == t.Vaddr {
			continue
		}
		if ok {
			return t, false, p.fault("ambiguous-code", y, "the image has more than one version of it")
		}
		ok, t.Vaddr, t.Size = true, s.value, s.size
	}
	for _, at := range p.m.im.places {
		d := p.m.im.relocs[at]
		if d.typ == elf.R_X86_64_GLOB_DAT && d.name == y.Name && !y.IsFunc() && (!ok || !p.m.im.program) {
			return patchlink.Target{Image: t.Image, Module: t.Module, Kind: patchlink.GOT, Vaddr: at, Size: t.Size}, true, nil
		}
	}
	return t, ok, nil
}

// thread reports whether something was found to be thread-local.
func (m *matcher) thread(k key) bool {
	for _, s := range []sort{tpOff, dtpOff, tpSlot, tlsPair} {
		if _, ok := m.known[factKey{k, s}]; ok {
			return true
		}
	}
	return false
}

// threadLocal gives where a thread-local variable is.
func (p *Placement) threadLocal(y *objfile.Symbol) (patchlink.Target, error) {
	m, t, k := p.m, p.target(), keyOf(y)
	t.Size = y.Size
	tp, hasTP := m.known[factKey{k, tpOff}]
	dtp, hasDTP := m.known[factKey{k, dtpOff}]
	if !hasTP && !hasDTP {
		n := 0
		for _, s := range m.im.named(y) {
			if s.typ == elf.STT_TLS {
				dtp, hasDTP = s.value, true
				n++
			}
		}
		if n > 1 {
			return t, p.fault("ambiguous-code", y, "%d thread-local variables have its name", n)
		}
	}
	if m.im.program && (hasTP || hasDTP) {
		if !hasTP {
			tp = dtp - uint64(m.im.tlsSize)
		}
		t.Kind, t.Offset = patchlink.TPOff, int64(tp)
		return t, nil
	}
	t.Kind, t.Offset = patchlink.TLS, int64(dtp)
	t.Slots.TPOff = m.known[factKey{k, tpSlot}]
	t.Slots.Pair = m.known[factKey{k, tlsPair}]
	t.Slots.Module = m.known[factKey{sort: tlsOwner}]
	m.im.threadSlots(y, dtp, hasDTP, &t.Slots)
	if !hasDTP && t.Slots.TPOff == 0 && t.Slots.Pair == 0 {
		return t, p.unsolved(y)
	}
	return t, nil
}

// threadSlots finds the slots for a thread-local variable that code of other
// objects uses, and for the module.
func (im *Image) threadSlots(y *objfile.Symbol, dtp uint64, hasDTP bool, s *patchlink.TLSSlots) {
	for _, at := range im.places {
		d := im.relocs[at]
		mine := d.name != "" && d.name == y.Name && y.Bind != elf.STB_LOCAL
		switch d.typ {
		case elf.R_X86_64_TPOFF64:
			if s.TPOff == 0 && (mine || d.name == "" && hasDTP && uint64(d.addend) == dtp) {
				s.TPOff = at
			}
		case elf.R_X86_64_DTPMOD64:
			b, ok := im.bytes(at+8, 8)
			local := d.name == "" && ok && im.relocs[at+8].typ == 0
			if s.Pair == 0 && (mine || local && hasDTP && le.Uint64(b) == dtp) {
				s.Pair = at
			}
			if s.Module == 0 && local && le.Uint64(b) == 0 {
				s.Module = at
			}
		}
	}
}
