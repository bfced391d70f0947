package patchlink

import (
	"cmp"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
)

// unit is one object on its way into the patch.
type unit struct {
	l    *linker
	diff *objdiff.Diff
	base Base
	obj  *object
	rec  records

	ship  map[*objfile.Section]*section
	order []*objfile.Section // of ship
	syms  map[*objfile.Symbol]*symbol
	owner map[*objfile.Section]*objdiff.Function // of code of changed functions, their parts included
	slots *section                               // words that stand in for slots of a global offset table, or nil
	slot  map[slotKey]uint64                     // offsets in it
	own   map[place]*objdiff.Function            // what this object replaces
	moved []moved                                // functions that replace those of other objects
	vague map[*objfile.Symbol]*vague             // what is known of symbols that the program may have too
}

func newUnit(l *linker, s Input) *unit {
	u := &unit{l: l, diff: s.Diff, base: s.Base, obj: &object{},
		ship: make(map[*objfile.Section]*section), syms: make(map[*objfile.Symbol]*symbol),
		owner: make(map[*objfile.Section]*objdiff.Function), slot: make(map[slotKey]uint64), own: make(map[place]*objdiff.Function),
		vague: make(map[*objfile.Symbol]*vague)}
	u.rec = newRecords(u.obj)
	for i := range u.diff.Changed {
		f := &u.diff.Changed[i]
		u.owner[f.Post.Section] = f
		for _, p := range f.Parts {
			if p.Post != nil {
				u.owner[p.Post.Section] = f
			}
		}
	}
	return u
}

// build makes the edited object. Refusals are noted in the linker.
func (u *unit) build() error {
	ship := u.diff.Ship
	if slices.ContainsFunc(ship, func(s *objfile.Section) bool { return slices.ContainsFunc(s.Symbols, u.inProgram) }) {
		ship = u.diff.ShipWithout(u.inProgram)
	}
	for _, s := range ship {
		u.take(s)
	}
	if err := u.elsewhere(); err != nil {
		return err
	}
	frames := u.frames()
	for _, f := range frames {
		for _, r := range slices.Concat(f.CIE.Relocs, f.Relocs) {
			u.takeIndirect(r.Sym)
		}
	}
	// Sections that hold pointers for the exception tables come with them.
	for i := 0; i < len(u.order); i++ {
		for _, r := range u.order[i].Relocs {
			u.takeIndirect(r.Sym)
		}
	}
	for _, s := range u.order {
		for _, y := range s.Symbols {
			u.symbol(y)
		}
	}
	for _, s := range u.order {
		if err := u.relocate(s); err != nil {
			return err
		}
	}
	if err := u.unwindTables(frames); err != nil {
		return err
	}
	u.property()
	u.obj.noExecStack()
	if err := u.replacements(); err != nil {
		return err
	}
	if n := len(u.obj.sections); n >= int(elf.SHN_LORESERVE) {
		return &fault.Error{Kind: fault.Unfit, Code: "too-many-sections", What: "cannot build a patch", Where: u.diff.Post.Path, Why: fmt.Sprintf("it would have %d sections", n)}
	}
	return nil
}

// indirect begins the names of the words by which exception tables refer to
// what may be in another library (gcc, clang).
const indirect = "DW.ref."

func (u *unit) takeIndirect(y *objfile.Symbol) {
	if y.Section != nil && strings.HasPrefix(y.Name, indirect) {
		u.take(y.Section)
	}
}

// take puts a section into the object.
func (u *unit) take(s *objfile.Section) {
	const unwind = 0x70000001 // SHT_X86_64_UNWIND
	switch {
	case u.ship[s] != nil || s.Flags&elf.SHF_ALLOC == 0 || s.Name == ".eh_frame" || s.Type == unwind:
		return
	case s.Name == "__patchable_function_entries": // says where pads are, to nobody
		return
	case s.Type == elf.SHT_INIT_ARRAY, s.Type == elf.SHT_FINI_ARRAY, s.Type == elf.SHT_PREINIT_ARRAY:
		return // constructors of the program have run
	}
	n := &section{name: s.Name, typ: s.Type, align: s.Align, size: s.Size, data: slices.Clone(s.Data),
		flags: s.Flags & (elf.SHF_ALLOC | elf.SHF_WRITE | elf.SHF_EXECINSTR | elf.SHF_TLS)}
	if n.name == recordSection {
		n.flags |= 0x200000 // SHF_GNU_RETAIN
	} else if n.flags&(elf.SHF_WRITE|elf.SHF_EXECINSTR) == 0 && slices.ContainsFunc(s.Relocs, func(r objfile.Reloc) bool { return r.Type == elf.R_X86_64_64 }) {
		// Constants with addresses, of code that is not position-independent: the
		// loader fills them in and then makes them read-only.
		n.name, n.flags = ".data.rel.ro"+s.Name, n.flags|elf.SHF_WRITE
	}
	u.ship[s] = u.obj.add(n)
	u.order = append(u.order, s)
}

// symbol gives the symbol in the patch for one that is shipped, or undefined.
// All are local but those that other objects of the patch may refer to, which
// are hidden.
func (u *unit) symbol(y *objfile.Symbol) *symbol {
	if n := u.syms[y]; n != nil {
		return n
	}
	var n *symbol
	switch {
	case y.Type == elf.STT_SECTION && y.Section != nil:
		n = u.ship[y.Section].sym
	case y.Section != nil:
		n = &symbol{name: y.Name, typ: y.Type, sec: u.ship[y.Section], value: y.Value, size: y.Size}
		if isFresh(u.diff, y) || y.Bind == elf.STB_GLOBAL && u.l.fresh[y.Name] {
			n.bind, n.vis = elf.STB_GLOBAL, elf.STV_HIDDEN
			if y.Bind != elf.STB_GLOBAL || y.Section.Group != nil {
				n.bind = elf.STB_WEAK // of several copies in several objects one will do
			}
		}
		u.obj.symbols = append(u.obj.symbols, n)
	case y.Where == elf.SHN_COMMON:
		s := u.obj.add(&section{name: ".bss." + y.Name, typ: elf.SHT_NOBITS, flags: elf.SHF_ALLOC | elf.SHF_WRITE, align: max(y.Value, 1), size: y.Size})
		n = &symbol{name: y.Name, bind: elf.STB_WEAK, vis: elf.STV_HIDDEN, typ: elf.STT_OBJECT, sec: s, size: y.Size}
		u.obj.symbols = append(u.obj.symbols, n)
	default:
		n = u.obj.undefined(y.Name, y.Type, y.Bind == elf.STB_WEAK)
	}
	u.syms[y] = n
	return n
}

// property carries over what the object says of the processor's features it is
// made for (.note.gnu.property): the linker keeps what all of them have.
func (u *unit) property() {
	o := u.diff.Pre // Post may be compiled in another way, which the process need not know of
	if len(o.Sections) <= 1 {
		o = u.diff.Post
	}
	for _, s := range o.Sections {
		if s.Name == ".note.gnu.property" && len(s.Relocs) == 0 && s.Data != nil {
			u.obj.add(&section{name: s.Name, typ: s.Type, flags: elf.SHF_ALLOC, align: s.Align, data: slices.Clone(s.Data)})
		}
	}
}

// noExecStack says that the object needs no executable stack.
func (o *object) noExecStack() {
	o.add(&section{name: ".note.GNU-stack", typ: elf.SHT_PROGBITS, align: 1})
}

// replacements says which functions of the base are replaced.
func (u *unit) replacements() error {
	for i := range u.diff.Changed {
		f := &u.diff.Changed[i]
		t, err := u.find(f.Pre)
		if isNotInImage(err) {
			u.l.report.Absent = append(u.l.report.Absent, f.Pre.Name)
			continue
		}
		if err == nil {
			err = u.replace(f, t)
		}
		if err := u.l.refuse(err); err != nil {
			return err
		}
	}
	for _, m := range u.moved {
		if err := u.l.refuse(u.replace(&objdiff.Function{Pre: m.old, Post: m.post}, m.at)); err != nil {
			return err
		}
		u.l.report.Moved = append(u.l.report.Moved, m.post.Name)
	}
	return u.checkFolded()
}

// replace says that a function of the base is replaced.
func (u *unit) replace(f *objdiff.Function, t target) error {
	if t.Kind != Addr {
		return u.fault("not-in-image", f.Post, "the image has no code of it, only a reference to another library's")
	}
	size := cmp.Or(t.Size, f.Pre.Size)
	names := []string{f.Pre.Name}
	for _, a := range f.Aliases {
		names = append(names, a.Name)
	}
	at := place{t.image, t.Vaddr}
	if other, taken := u.l.claimed[at]; taken {
		// The same inline function in several objects is one in the image.
		if other != f.Pre.Name || f.Pre.Bind == elf.STB_LOCAL {
			return u.fault("folded-functions", f.Post, "the linker made one function, at %#x of %s, of it and %s, which changed differently", t.Vaddr, t.image.name, elfsym.Demangle(other))
		}
		return nil
	}
	u.l.claimed[at] = f.Pre.Name
	if size == 0 {
		return u.fault("not-in-image", f.Post, "its size is not known")
	}
	code := make([]byte, size)
	if err := t.image.file.ReadVaddr(code, t.Vaddr); err != nil {
		return err
	}
	u.own[at] = f
	if why := noEntry(t.image, t.Vaddr, code); why != "" {
		u.l.report.NoEntry = append(u.l.report.NoEntry, Own{Name: f.Pre.Name, Why: why})
	}
	u.rec.replace(pointer{u.symbol(f.Post), 0}, t.image, t.Vaddr, size, names, sha256.Sum256(code))
	u.l.report.Functions = append(u.l.report.Functions, Replaced{Name: f.Pre.Name, Module: t.image.name, Vaddr: t.Vaddr, Size: size})
	return nil
}

// checkFolded refuses to replace a function of which the linker has made one with
// another of the same object that has not changed.
func (u *unit) checkFolded() error {
	for _, y := range u.diff.Pre.Symbols {
		if !y.IsFunc() || y.Section == nil {
			continue
		}
		t, err := u.find(y)
		if err != nil || t.Kind != Addr {
			continue // nobody needs to know where it is
		}
		f := u.own[place{t.image, t.Vaddr}]
		if f == nil || f.Pre.Section == y.Section && f.Pre.Value == y.Value {
			continue
		}
		err = u.fault("folded-functions", f.Post, "the linker made one function, at %#x of %s, of it and %s, which has not changed", t.Vaddr, t.Module, elfsym.Demangle(y.Name))
		if err := u.l.refuse(err); err != nil {
			return err
		}
	}
	return nil
}

// fault makes a refusal about a symbol of this object.
func (u *unit) fault(code string, y *objfile.Symbol, format string, args ...any) *fault.Error {
	name := elfsym.Demangle(y.String())
	return &fault.Error{Kind: fault.Unfit, Code: code, What: "cannot build a patch with " + name, Where: u.diff.Post.Path, Why: fmt.Sprintf(format, args...)}
}
