package patchfile

import (
	"cmp"
	"debug/elf"
	"slices"
	"strings"

	"hotpatch/elfsym"
)

// nameFunctions fills in the names and sizes of the functions that records
// point to, from .symtab where the library has it, else from .dynsym. An
// indirect function cannot be any of them: its address is its resolver's.
func (p *Patch) nameFunctions() error {
	named := make(map[uint64][]*Function)
	add := func(fs []Function) {
		for i := range fs {
			named[fs[i].Addr] = append(named[fs[i].Addr], &fs[i])
		}
	}
	for i := range p.Replacements {
		f := &p.Replacements[i].New
		named[f.Addr] = append(named[f.Addr], f)
	}
	add(p.Kept)
	add(p.Hooks.BeforeApply)
	add(p.Hooks.AfterApply)
	add(p.Hooks.BeforeRevert)
	add(p.Hooks.AfterRevert)
	if len(named) == 0 {
		return nil
	}
	var bad error
	for _, table := range []elfsym.Table{elfsym.Symtab, elfsym.Dynsym} {
		err := p.Image.Symbols(table, func(s *elfsym.Sym) bool {
			if s.Type != elf.STT_FUNC && s.Type != elf.STT_GNU_IFUNC || !s.Defined() {
				return true
			}
			for _, f := range named[s.Value] {
				if s.Type == elf.STT_GNU_IFUNC {
					bad = refuse(p.Path, "patch-bad-replacement", "%.100q is an indirect function (IFUNC)", s.Name)
					return false
				}
				if f.Name == "" && printable(string(s.Name), maxSymbol) {
					f.Name, f.Size = string(s.Name), s.Size
				}
			}
			return true
		})
		if bad != nil {
			return bad
		}
		if err != nil {
			return damaged(p.Path, err)
		}
	}
	return nil
}

// readExports collects the functions that the dynamic linker can see, without
// those that records give another purpose and without _init and _fini.
func (p *Patch) readExports() error {
	other := make(map[uint64]bool)
	for _, fs := range [][]Function{p.Kept, p.Hooks.BeforeApply, p.Hooks.AfterApply, p.Hooks.BeforeRevert, p.Hooks.AfterRevert} {
		for _, f := range fs {
			other[f.Addr] = true
		}
	}
	for _, r := range p.Replacements {
		other[r.New.Addr] = true
	}
	for _, tag := range []elf.DynTag{elf.DT_INIT, elf.DT_FINI} {
		if addr, ok := p.Image.DynTag(tag); ok {
			other[addr] = true
		}
	}

	var all []Export
	var bad error
	budget := len(p.Data) // names of real libraries do not overlap that much
	err := p.Image.Symbols(elfsym.Dynsym, func(s *elfsym.Sym) bool {
		if !s.Defined() || s.Type != elf.STT_FUNC && s.Type != elf.STT_GNU_IFUNC ||
			s.Bind != elf.STB_GLOBAL && s.Bind != elf.STB_WEAK ||
			s.Vis == elf.STV_HIDDEN || s.Vis == elf.STV_INTERNAL || other[s.Value] {
			return true
		}
		name := string(s.Name)
		budget -= len(name)
		switch {
		case name == "" || !printable(name, maxSymbol) || budget < 0:
			bad = refuse(p.Path, "patch-damaged", "the exported function at %#x has the name %.100q", s.Value, name)
		case s.Type == elf.STT_GNU_IFUNC:
			bad = hint(refuse(p.Path, "patch-bad-replacement", "it exports %.100q, which is an indirect function (IFUNC)", name),
				"make it an ordinary function, or hide it")
		case !p.Image.Executable(s.Value):
			bad = refuse(p.Path, "patch-bad-replacement", "it exports %.100q, which is a function at %#x, where no code is", name, s.Value)
		}
		all = append(all, Export{Function{Name: name, Addr: s.Value, Size: s.Size}, s.Bind})
		return bad == nil
	})
	if bad != nil {
		return bad
	}
	if err != nil {
		return damaged(p.Path, err)
	}
	slices.SortFunc(all, func(a, b Export) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Addr, b.Addr), cmp.Compare(a.Bind, b.Bind))
	})
	for i, e := range all {
		if i > 0 && all[i-1].Name == e.Name {
			if all[i-1].Addr != e.Addr {
				return hint(refuse(p.Path, "patch-bad-replacement", "it exports %.100q twice, at %#x and %#x", e.Name, all[i-1].Addr, e.Addr),
					"do not give the functions of a patch several versions")
			}
			continue
		}
		if e.Bind == elf.STB_WEAK {
			p.Weak = append(p.Weak, e)
		} else {
			p.Exports = append(p.Exports, e)
		}
	}
	return nil
}

// Lookup gives the address of the function with that mangled name, of any
// binding, which the library defines: a thunk, for instance. ok is false if
// there is none, or if the name stands for several addresses. It reads the
// symbol tables from end to end.
func (p *Patch) Lookup(name string) (addr uint64, ok bool) {
	several := false
	for _, table := range []elfsym.Table{elfsym.Symtab, elfsym.Dynsym} {
		err := p.Image.Symbols(table, func(s *elfsym.Sym) bool {
			if s.Type != elf.STT_FUNC || !s.Defined() || string(s.Name) != name || !p.Image.Executable(s.Value) {
				return true
			}
			several = ok && addr != s.Value
			addr, ok = s.Value, true
			return !several
		})
		if err != nil || several {
			return 0, false
		}
	}
	return addr, ok
}
