package objdiff

import (
	"cmp"
	"debug/elf"
	"slices"
	"strings"

	"hotpatch/internal/objfile"
)

// ship finds the sections that the patch must contain.
func (d *differ) ship() {
	var roots []*objfile.Symbol
	for _, f := range d.out.Changed {
		roots = append(roots, f.Post)
		for _, p := range f.Parts {
			if p.Post != nil {
				roots = append(roots, p.Post)
			}
		}
	}
	for _, y := range d.out.New {
		// Other files of the patch may use it. What is weak they have themselves.
		if y.Bind == elf.STB_GLOBAL && !d.notShipped[y] {
			roots = append(roots, y)
		}
	}
	d.out.roots = roots
	d.out.Ship = d.out.ShipWithout(func(*objfile.Symbol) bool { return false })
	for _, s := range d.out.Ship {
		for _, r := range Refs(s) {
			if _, stub := typeStub(r); stub {
				continue
			}
			if to := r.Sym.Section; to != nil && r.Sym.Type == elf.STT_SECTION && to.Flags&elf.SHF_WRITE != 0 && !isReadOnly(to) {
				d.refuse("unnamed-data", r.Sym, "", s.Name+" uses a variable that has no name, so the one of the running program cannot be found",
					"give it a name: it may come from inline assembler")
				return
			}
		}
	}
}

// ShipWithout gives the sections of Post that a patch needs to contain the changed and new
// functions: their own, the exception tables of their code and the cells that lead to its
// personality routine, and so on for all that those refer to and that has no twin. They come
// by ascending index.
//
// Ship is that. skip names symbols without a twin that are not needed, because the base has
// them nevertheless.
func (d *Diff) ShipWithout(skip func(*objfile.Symbol) bool) []*objfile.Section {
	frames := make(map[*objfile.Section][]*objfile.Frame)
	for _, f := range d.Post.Frames {
		frames[f.Code] = append(frames[f.Code], f)
	}
	seen := make(map[*objfile.Section]bool)
	var todo []*objfile.Section
	add := func(s *objfile.Section) {
		if s != nil && !seen[s] && s.Flags&elf.SHF_ALLOC != 0 {
			seen[s] = true
			todo = append(todo, s)
		}
	}
	for _, y := range d.roots {
		add(y.Section)
	}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, f := range frames[s] {
			add(f.LSDA)
			if p := f.CIE.Personality; p != nil && d.Twin[p] == nil {
				add(p.Section)
			}
		}
		for _, r := range Refs(s) {
			// The new code of a function is wanted only if it is asked for.
			if d.Twin[r.Sym] == nil && !skip(r.Sym) {
				add(r.Sym.Section)
			}
		}
	}
	list := make([]*objfile.Section, 0, len(seen))
	for s := range seen {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *objfile.Section) int { return cmp.Compare(a.Index, b.Index) })
	return list
}

// Refs gives what a section refers to. Code that cannot be decoded is taken to
// have its relocations at the ends of the instructions, which is right for what
// is meant unless several symbols share the section that is referred to.
func Refs(s *objfile.Section) []objfile.Ref {
	if isCode(s) && s.Data != nil {
		if insts, err := s.Decode(0, s.Size); err == nil {
			var list []objfile.Ref
			for _, in := range insts {
				list = append(list, in.Refs...)
			}
			return list
		}
	}
	list := make([]objfile.Ref, len(s.Relocs))
	for i, r := range s.Relocs {
		switch {
		case isCode(s) && r.PCRel():
			list[i] = s.Resolve(r, r.Off+uint64(r.Width()))
		case isFrameData(s):
			list[i] = s.Resolve(r, r.Off)
		default:
			start := uint64(0)
			if y := s.At(int64(r.Off)); y != nil {
				start = y.Value
			}
			list[i] = s.Resolve(r, start)
		}
	}
	return list
}

// isFrameData reports whether a section describes frames, with references that
// count from their own place.
func isFrameData(s *objfile.Section) bool {
	return s.Name == ".eh_frame" || s.Name == ".gcc_except_table" || strings.HasPrefix(s.Name, ".gcc_except_table.")
}

// threadLocals refuses new thread-local variables that shipped code reaches in
// ways that a loaded library cannot offer.
func (d *differ) threadLocals() {
	for _, s := range d.out.Ship {
		if !isCode(s) {
			continue
		}
		var module, old, fresh *objfile.Symbol
		for _, r := range Refs(s) {
			isNew := r.Sym.Section != nil && r.Sym.Section.Flags&elf.SHF_TLS != 0 && d.twin[r.Sym] == nil
			switch r.Reloc.Type {
			case elf.R_X86_64_TPOFF32, elf.R_X86_64_TPOFF64:
				if isNew {
					d.refuse("new-tls", r.Sym, "", "it is a new thread-local variable, and the code (model local-exec) counts on it being in the executable's own block",
						"compile with -fPIC, or let the variable have global scope and be compiled with -ftls-model=global-dynamic")
					return
				}
			case elf.R_X86_64_TLSLD:
				module = r.Sym
			case elf.R_X86_64_DTPOFF32, elf.R_X86_64_DTPOFF64:
				if isNew {
					fresh = r.Sym
				} else {
					old = r.Sym
				}
			}
		}
		if module != nil && old != nil && fresh != nil {
			d.refuse("new-tls", fresh, "", "it is a new static thread-local variable, and "+s.Name+" uses it together with "+old.Name+
				", which the program has: the code counts on both being in one block", "make the new variable global (not static)")
			return
		}
	}
}
