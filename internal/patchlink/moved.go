package patchlink

import (
	"bytes"
	"debug/elf"
	"maps"
	"slices"
	"strings"

	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
)

// A change may define in one file what the image has from another: it was moved, or a
// definition now stands in for a weak one. Whoever uses it still finds what the image has.
// So the new code of a function is entered by way of the old one, and the new content of a
// variable is refused.

// moved is a function of the patch that replaces one which another object has defined.
type moved struct {
	post *objfile.Symbol
	at   target
	old  *objfile.Symbol
}

// elsewhere finds what is new in this object and the image has from another one.
func (u *unit) elsewhere() error {
	for _, y := range u.diff.New {
		if y.Bind != elf.STB_GLOBAL || y.Section == nil || u.ship[y.Section] == nil || y.Section.Group != nil || strings.HasPrefix(y.Name, "_ZT") || y.Section.Name == recordSection {
			continue
		}
		if err := u.l.refuse(u.movedHere(y)); err != nil {
			return err
		}
	}
	return nil
}

// movedHere settles one such symbol.
func (u *unit) movedHere(y *objfile.Symbol) error {
	e, err := u.base.Elsewhere(y)
	if err != nil {
		return err
	}
	switch {
	case e.Presence == Absent && e.Wanted != "":
		f := u.fault("new-definition", y, "%s refers to it, and until now that is not defined in the image: what runs would not see the new definition", e.Wanted)
		f.Hint = "give the new one another name, and change those that are to use it"
		return f
	case e.Presence == Absent, e.Presence == Unsure:
		return nil
	case !y.IsFunc():
		return u.movedVariable(y, e)
	case e.Presence == Lost:
		f := u.fault("moved-function", y, "another file of the image has defined it until now, and where its code is cannot be told: %s", e.Why)
		f.Hint = "leave the function in its file, or give the debug file of the image"
		return f
	case e.Old == nil:
		f := u.fault("moved-function", y, "it is new in this file, and the image has one of its name, of another file that is not known")
		f.Hint = "give the other objects of the image with --objects, or leave the function in its file"
		return f
	}
	t, err := u.l.target(e.Target)
	if err != nil {
		return err
	}
	if v := u.ownState(y, e.Old); v != "" {
		f := u.fault("moved-variable", y, "it was moved here from another file together with its variable %s, of which the patch would have another one: what is in the old one would not count", v)
		f.Hint = "leave both where they were"
		return f
	}
	for _, other := range e.Old.Section.Symbols {
		if other.IsFunc() && other.Value == e.Old.Value && other.Bind != elf.STB_LOCAL && other.Name != y.Name {
			f := u.fault("split-alias", y, "until now it is the same code as %s, in another file, and that is not to be replaced", other.Name)
			f.Hint = "leave the function in its file"
			return f
		}
	}
	u.moved = append(u.moved, moved{y, t, e.Old})
	return nil
}

// movedVariable refuses a variable that another object has defined: what is in that one
// would not count. A constant may be there twice as long as both are the same.
func (u *unit) movedVariable(y *objfile.Symbol, e Elsewhere) error {
	if e.Presence == Present && e.Kind == Addr && y.Section.Flags&elf.SHF_WRITE == 0 && y.Section.Data != nil && !slices.ContainsFunc(y.Section.Relocs, func(r objfile.Reloc) bool { return r.Off >= y.Value && r.Off < y.Value+y.Size }) {
		was := make([]byte, y.Size)
		if e.Image.ReadVaddr(was, e.Vaddr) == nil && bytes.Equal(was, y.Section.Data[y.Value:y.Value+y.Size]) {
			return nil
		}
	}
	f := u.fault("moved-variable", y, "it is new in this file, and the program has one of its name, of another file: what is in that one would not count")
	f.Hint = "leave its definition where it was, or give the new one another name"
	return f
}

// ownState gives the name of a static variable that a function has brought along from the
// object in which it was: one that its code uses, and that has a namesake which the old
// code has used.
func (u *unit) ownState(post, old *objfile.Symbol) string {
	was := statics(old, func(*objfile.Symbol) bool { return true })
	now := statics(post, func(y *objfile.Symbol) bool { return u.diff.Twin[y] == nil })
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if was[name] {
			return name
		}
	}
	return ""
}

// statics gives the names of static variables that a function and the static functions
// which it calls refer to, without what compilers append.
func statics(f *objfile.Symbol, wanted func(*objfile.Symbol) bool) map[string]bool {
	names := make(map[string]bool)
	seen := map[*objfile.Symbol]bool{f: true}
	for todo := []*objfile.Symbol{f}; len(todo) > 0; {
		f, todo = todo[0], todo[1:]
		for _, r := range objdiff.Refs(f.Section) {
			y := r.Sym
			if inside := r.Reloc.Off >= f.Value && r.Reloc.Off < f.Value+f.Size; !inside || y.Section == nil || y.Bind != elf.STB_LOCAL || seen[y] || !wanted(y) {
				continue
			}
			seen[y] = true
			switch {
			case y.IsFunc():
				todo = append(todo, y)
			case y.Section.Flags&elf.SHF_WRITE != 0 && y.Name != "":
				names[objdiff.Stem(y.Name)] = true
			}
		}
	}
	return names
}

// globalised notes where the images have the functions that were static and are global after
// the change, so that other objects may refer to them.
func (l *linker) globalised(inputs []Input) error {
	for _, s := range inputs {
		for _, f := range s.Diff.Changed {
			if f.Pre.Bind != elf.STB_LOCAL || f.Post.Bind != elf.STB_GLOBAL {
				continue
			}
			t, err := s.Base.Find(f.Pre)
			if isNotInImage(err) {
				l.fresh[f.Post.Name] = true // it was inlined everywhere: the patch has the only one
				continue
			}
			if err != nil {
				continue // refused where it is to be replaced
			}
			at, err := l.target(t)
			if err != nil {
				return err
			}
			l.global[f.Post.Name] = append(l.global[f.Post.Name], at)
		}
	}
	return nil
}
