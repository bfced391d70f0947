package objdiff

import (
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"hotpatch/internal/objfile"
)

// compareData refuses existing data whose value at the start of the program, size
// or place differs: the running program has the old, and goes on with it.
func (d *differ) compareData() {
	for _, b := range d.post.Symbols {
		a := d.twin[b]
		if a == nil || a.IsFunc() || b.IsFunc() || !a.Defined() || !b.Defined() || a.Type == elf.STT_NOTYPE && isCode(a.Section) {
			continue
		}
		why := d.dataDiffers(a, b)
		switch {
		case why == "":
		case isClassData(b.Name):
			d.refuse("changed-vtable", b, AllowVtable, why+"; objects that exist keep the old one",
				"do not add, remove or reorder virtual functions and bases; change the bodies of functions only")
		default:
			d.refuse("changed-data", b, "", why+"; the running program keeps the old one",
				"leave its definition alone, and let new code or a hook before apply set it")
		}
	}
}

// firstUses refuses variables that have had a constant for their initial value, and are initialised
// by code at their first use now: guards are new then, so that the first call of the new code
// would throw away what the running program has in them.
func (d *differ) firstUses() {
	before := make(map[string]bool)
	for _, y := range d.pre.Symbols {
		before[y.Name] = before[y.Name] || y.Defined()
	}
	guarded := make(map[string]bool) // by the name of the variable after the change
	threads := false                 // the variables of every thread are initialised together
	for _, g := range d.post.Symbols {
		if a := d.twin[g]; !g.Defined() || a != nil && a.Defined() {
			continue
		}
		if rest, ok := strings.CutPrefix(g.Name, "_ZGV"); ok {
			guarded["_Z"+rest] = true
		}
		threads = threads || g.Name == "__tls_guard"
	}
	if len(guarded) == 0 && !threads {
		return
	}
	for _, b := range d.post.Symbols {
		a := d.twin[b]
		if a == nil || a.IsFunc() || b.IsFunc() || !a.Defined() || !b.Defined() || a.Section == nil || isReadOnly(a.Section) {
			continue
		}
		guard := guarded[b.Name] && !before["_ZGV"+strings.TrimPrefix(a.Name, "_Z")]
		if guard || threads && b.Type == elf.STT_TLS && slices.ContainsFunc(d.usesOf(d.post).by[b], setsUpThreads) {
			d.refuse("changed-data", b, AllowStatic, "it had a constant for its initial value, and is initialised by code at its first use: that would throw away what the running program has in it",
				"leave its initial value as it is, and let new code or a hook before apply set it")
		}
	}
}

// setsUpThreads reports whether a function is one that compilers make to initialise the
// thread-local variables of a file.
func setsUpThreads(y *objfile.Symbol) bool {
	return y.Name == "__tls_init" || strings.HasPrefix(y.Name, "_ZTH") || strings.HasPrefix(y.Name, "__cxx_global_var_init")
}

// dataDiffers says how two variables differ, or gives "".
func (d *differ) dataDiffers(a, b *objfile.Symbol) string {
	if a.Section == nil || b.Section == nil { // common symbols; their value is the alignment
		switch {
		case (a.Section == nil) != (b.Section == nil):
			return "it has an initial value in one build only"
		case a.Size != b.Size:
			return fmt.Sprintf("its size was %d bytes, and is %d", a.Size, b.Size)
		case a.Value != b.Value:
			return fmt.Sprintf("its alignment was %d bytes, and is %d", a.Value, b.Value)
		}
		return ""
	}
	s, t := a.Section, b.Section
	switch {
	case a.Size != b.Size:
		return fmt.Sprintf("its size was %d bytes, and is %d", a.Size, b.Size)
	case s.Flags&^elf.SHF_GROUP != t.Flags&^elf.SHF_GROUP || s.Type != t.Type || sectionClass(s.Name) != sectionClass(t.Name) && !generated(s.Name, t.Name):
		return fmt.Sprintf("it was in %s, and is in %s", s.Name, t.Name)
	case s.Align != t.Align && a.Value == 0 && b.Value == 0:
		return fmt.Sprintf("its alignment was %d bytes, and is %d", s.Align, t.Align)
	case !d.sameBytes(whole(a), whole(b), false), a.Size == 0 && !d.sameBytes(upToNext(a), upToNext(b), false):
		return "its initial value differs"
	}
	return ""
}

// upToNext gives what is behind a symbol without a size, such as assembler makes, up to the
// next symbol of the section.
func upToNext(y *objfile.Symbol) place {
	p := place{y.Section, y.Value, y.Section.Size}
	for _, z := range y.Section.Symbols {
		if z.Value > y.Value {
			p.hi = min(p.hi, z.Value)
		}
	}
	return p
}

// folded refuses static variables that a compiler has taken for constants, because
// nothing writes to them any more: the new code would not look at what the running
// program has in them. That the source still has such a variable, debugging information
// tells; without it, the variable may be gone from the source as well.
func (d *differ) folded() {
	constant := make(map[string]*objfile.Symbol)
	for _, y := range d.post.Symbols {
		if y.Bind == elf.STB_LOCAL && y.Section != nil && byContent(y) && !y.IsFunc() && !anonymous(y.Name) {
			constant[y.File+"\x00"+baseName(y.Name)] = y
		}
	}
	post := d.full(d.post)
	for _, a := range d.out.Removed {
		if a.IsFunc() || a.Bind != elf.STB_LOCAL || isStaticLocal(a) || a.Section == nil || isReadOnly(a.Section) {
			continue
		}
		used := slices.ContainsFunc(d.usesOf(d.pre).by[a], func(f *objfile.Symbol) bool { return d.rev[f] != nil })
		hint := "keep a write to it that the compiler cannot rule out, or make it volatile in the old source's next release"
		switch {
		case constant[a.File+"\x00"+baseName(a.Name)] != nil, used && post.hasVariable(a):
			d.refuse("folded-static", a, AllowStatic, "nothing writes to it any more, and so the compiler has made a constant of it: what the running program has in it would not count", hint)
		case used && post.err != nil:
			d.refuse("folded-static", a, AllowStatic, "it is gone, or the compiler has made a constant of it, so that what the running program has in it would not count; without debugging information that is not to be told",
				"compile with -g")
		}
	}
}

// generated reports whether both names are those that -fdata-sections makes for
// one symbol under two numbers.
func generated(a, b string) bool { return baseName(a) == baseName(b) }

// constructors refuses what the program has run already, or runs when it ends:
// functions in .init_array and its like. Those are not shipped.
func (d *differ) constructors() {
	before, after := d.startup(d.pre), d.startup(d.post)
	hint := "set up in a hook before apply what they would do"
	kept := d.out.Changed[:0]
	for _, f := range d.out.Changed {
		switch {
		case resolver(f):
			d.refuse("changed-ifunc", f.Post, AllowIFunc, "the resolver of an indirect function differs ("+f.Why+"), and it has run already",
				"change the implementations only")
			d.notShipped[f.Post] = true
		case before[f.Pre] || after[f.Post]:
			d.refuse("changed-constructor", f.Post, AllowConstructor, "it runs at the start or the end of the program only ("+f.Why+")", hint)
			d.notShipped[f.Post] = true
		default:
			kept = append(kept, f)
		}
	}
	d.out.Changed = kept
	for _, b := range sortedSymbols(after) {
		if d.twin[b] == nil {
			d.refuse("changed-constructor", b, AllowConstructor, "it is new, and would run at the start or the end of the program", hint)
			d.notShipped[b] = true
		}
	}
	// A new entry for a function that is not new.
	listed := make(map[*objfile.Symbol]bool)
	for _, b := range arrayed(d.post) {
		listed[b] = true
	}
	for _, a := range arrayed(d.pre) {
		delete(listed, d.rev[a])
	}
	for _, b := range sortedSymbols(listed) {
		if d.twin[b] != nil {
			d.refuse("changed-constructor", b, AllowConstructor, "it is a constructor or destructor of the file now, and was none", hint)
		}
	}
}

// resolver reports whether a function is the resolver of an indirect one, which is
// another symbol for the same place.
func resolver(f Function) bool {
	indirect := func(y *objfile.Symbol) bool { return y.Type == elf.STT_GNU_IFUNC }
	return indirect(f.Pre) || indirect(f.Post) || slices.ContainsFunc(f.Aliases, indirect)
}

// startup gives the functions that run at the start or the end of the program:
// those that are listed for it, and those that compilers make for them to call.
func (d *differ) startup(o *objfile.Object) map[*objfile.Symbol]bool {
	m := make(map[*objfile.Symbol]bool)
	for _, y := range arrayed(o) {
		m[y] = true
	}
	for _, y := range o.Symbols {
		if y.IsFunc() && isCode(y.Section) && isConstructorName(y.Name) {
			m[y] = true
		}
	}
	return m
}

// arrayed gives the functions that .init_array and its like list.
func arrayed(o *objfile.Object) (list []*objfile.Symbol) {
	for _, s := range o.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 || !isInitArray(s) {
			continue
		}
		for _, r := range s.Relocs {
			if y := s.Resolve(r, r.Off).Sym; y.Name != "" && y.Type != elf.STT_SECTION {
				list = append(list, y)
			}
		}
	}
	return list
}
