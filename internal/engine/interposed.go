package engine

import (
	"debug/elf"
	"path/filepath"
	"slices"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
)

// checkInterposed refuses a function of a library in whose place the process uses another: the
// dynamic linker takes the first definition of a name, beginning with the program (System V ABI,
// chapter 5, "Shared Object Dependencies"). The inline and template functions of a header are in
// all that use it. Only functions are looked at that the patch means by their place: whoever
// replaces by name replaces all of that name.
func (pl *planner) checkInterposed() error {
	var scope []*elfsym.Module
	for _, r := range pl.p.Replacements {
		if !r.Exact || r.Module.Kind == elfsym.Executable || r.Module.Image == nil || symbolic(r.Module.Image) {
			continue
		}
		names, err := exported(r.Module.Image, func(y *elfsym.Sym) bool { return y.Value == r.Module.Vaddr(r.Old) })
		if err != nil || len(names) == 0 {
			continue // nobody else can stand for it
		}
		if scope == nil {
			scope = pl.t.globalScope()
		}
		for _, m := range scope {
			if m == r.Module {
				break
			}
			others, err := exported(m.Image, func(y *elfsym.Sym) bool { return names[string(y.Name)] != 0 })
			if err != nil || len(others) == 0 {
				continue
			}
			if by, ok := pl.replaced(m, others); ok {
				if by != "" {
					r.Notes = append(r.Notes, "calls by name go to the copy in "+m.Name+", which the patch "+by+" replaces")
				}
				break
			}
			where := r.Module.Name + ", " + m.Name
			if pl.o.AllowInterposed {
				r.Notes = append(r.Notes, "calls by name go to the copy in "+m.Name+", which is not replaced")
				break
			}
			pl.refuse(&fault.Error{Code: "interposed", What: "replacing " + r.Name() + " would not be enough", Where: where,
				Why:  m.Name + " has a copy of it, which the dynamic linker has taken for all calls by name, and the patch does not replace that",
				Hint: "make a patch for each of both, and apply that of " + m.Name + " first; or say --allow-interposed if the library's own direct calls are meant"})
			break
		}
	}
	return nil
}

// replaced reports whether all of some functions of a module are replaced, by this patch or by
// another one, whose name is given.
func (pl *planner) replaced(m *elfsym.Module, vaddrs map[string]uint64) (by string, ok bool) {
	for _, v := range vaddrs {
		if pl.byAddr[m.Addr(v)] != nil {
			continue
		}
		p, ok := pl.t.ledger.Current(m.Addr(v))
		if !ok {
			return "", false
		}
		by = p.Name
	}
	return by, true
}

// exported gives the functions of the dynamic symbol table that other modules may find and that
// are wanted, by name.
func exported(im *elfsym.Image, want func(*elfsym.Sym) bool) (map[string]uint64, error) {
	found := make(map[string]uint64)
	err := im.Symbols(elfsym.Dynsym, func(y *elfsym.Sym) bool {
		if y.Defined() && y.Bind != elf.STB_LOCAL && y.Vis == elf.STV_DEFAULT && y.Type == elf.STT_FUNC && !y.Hidden && want(y) {
			found[string(y.Name)] = y.Value
		}
		return true
	})
	return found, err
}

// symbolic reports whether a library finds its own definitions first (-Bsymbolic).
func symbolic(im *elfsym.Image) bool {
	const flagSymbolic = 2 // DF_SYMBOLIC
	_, old := im.DynTag(elf.DT_SYMBOLIC)
	flags, _ := im.DynTag(elf.DT_FLAGS)
	return old || flags&flagSymbolic != 0
}

// globalScope gives the program and what it needs, in the order in which the dynamic linker looks
// through them: level by level. What was loaded by LD_PRELOAD is not among them.
func (t *target) globalScope() []*elfsym.Module {
	byName := make(map[string]*elfsym.Module)
	for _, m := range t.space.Modules {
		if m.Image != nil && !m.Ours {
			byName[m.Name] = m
			if s := m.Image.Soname(); s != "" {
				byName[s] = m
			}
		}
	}
	list := []*elfsym.Module{t.space.Executable()}
	if list[0] == nil || list[0].Image == nil {
		return nil
	}
	for i := 0; i < len(list); i++ {
		for _, name := range list[i].Image.Needed() {
			if m := byName[filepath.Base(name)]; m != nil && !slices.Contains(list, m) {
				list = append(list, m)
			}
		}
	}
	return list
}
