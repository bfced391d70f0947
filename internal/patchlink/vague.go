package patchlink

import (
	"debug/elf"
	"slices"
	"strings"

	"hotpatch/internal/fault"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
)

// Vague linkage (Itanium C++ ABI 5.2): inline functions with their static variables, inline
// variables, and what templates are instantiated to are defined in every object that uses
// them, and a linker leaves one of all. Code after a change may use such a thing where code
// before it has not, and then brings a definition along. The one that counts is the
// program's, if it has one; and of a function, the address, by which it may be known.
// Weak definitions and tentative ones of C are alike.

// Presence says whether an image has a definition.
type Presence int

// The presences.
const (
	Present  Presence = iota // at the target
	Absent                   // it has none: that is certain
	Exported                 // not here, but another image exports one
	Unsure                   // nothing that is known has one, and not all is known
	Lost                     // it has one, and where is not to be told
)

// vague is what is known of a symbol that the patch brings along.
type vague struct {
	target
	presence Presence
	why      string
}

// isVague reports whether other objects of the program may define a symbol that the change
// has added to this one. Vtables and type information are not meant: what is equal there is
// alike (Itanium C++ ABI 2.9.1). Nor are constants that only exception tables use.
func (u *unit) isVague(y *objfile.Symbol) bool {
	const unique = elf.SymBind(10) // STB_GNU_UNIQUE
	switch {
	case y.Name == "" || u.diff.Twin[y] != nil || u.l.severed[y.Name]:
		return false
	case strings.HasPrefix(y.Name, "_ZT") || strings.HasPrefix(y.Name, indirect):
		return false
	case y.Where == elf.SHN_COMMON:
		return true
	}
	return y.Section != nil && y.Section.Flags&elf.SHF_ALLOC != 0 && (y.Bind == elf.STB_WEAK || y.Bind == unique)
}

// program tells whether the program has a definition of its own for a symbol that the patch
// brings along. Errors are refusals.
func (u *unit) program(y *objfile.Symbol) (*vague, error) {
	if v := u.vague[y]; v != nil {
		return v, nil
	}
	t, presence, err := u.base.Vague(y)
	if err != nil && presence != Unsure && presence != Lost {
		return nil, err
	}
	v := &vague{presence: presence}
	if err != nil {
		v.why = fault.WhyOf(err)
	}
	if presence == Present {
		if v.target, err = u.l.target(t); err != nil {
			return nil, err
		}
	}
	u.vague[y] = v
	return v, nil
}

// takes reports whether a reference to a symbol that the patch brings along means the
// program's, so that the patch's is not to be used. To call a function, any one does.
func (u *unit) takes(from *objfile.Section, r objfile.Ref) (*vague, error) {
	y := r.Sym
	if !u.isVague(y) || from.Name == recordSection {
		return nil, nil
	}
	if y.IsFunc() && y.Section.Group != nil && (from.Flags&elf.SHF_EXECINSTR != 0 && !takesAddress(from, r.Reloc) || r.Off != 0 || strings.HasPrefix(from.Name, exceptTable) || from == y.Section) {
		return nil, nil
	}
	v, err := u.program(y)
	if err != nil {
		return nil, err
	}
	switch v.presence {
	case Absent:
		return nil, nil
	case Unsure, Lost:
		return nil, u.ownCopy(v, y)
	}
	return v, nil
}

// ownCopy lets a patch have a definition of its own where it is not certain that the program
// has none, if that can do no harm or is allowed; else it refuses.
func (u *unit) ownCopy(v *vague, y *objfile.Symbol) error {
	constant := y.Section != nil && y.Section.Flags&(elf.SHF_WRITE|elf.SHF_EXECINSTR) == 0
	switch {
	case constant, y.IsFunc() && v.presence == Unsure, slices.Contains(u.l.overrides, objdiff.AllowOwnCopy):
		if !slices.ContainsFunc(u.l.report.Own, func(o Own) bool { return o.Name == y.Name }) && !constant {
			o := Own{Name: y.Name, Why: v.why}
			if v.presence == Lost || !y.IsFunc() {
				o.Override = objdiff.AllowOwnCopy
			}
			u.l.report.Own = append(u.l.report.Own, o)
		}
		return nil
	}
	e := u.fault("shared-definition", y, "it is the first use of it in this file, and the program's other files may use it too: the patch must use theirs, and not one of its own; %s", v.why)
	e.Hint = "build with --source, from a tree in which all of the program is compiled (or give all of its objects with --objects), and name with --base all that the process runs of it, or give the debug file of the image; or allow it by the name " + objdiff.AllowOwnCopy
	return e
}

// inProgram reports whether the patch needs no variable of its own for one that the change
// has added. What is not certain is refused where it is referred to.
func (u *unit) inProgram(y *objfile.Symbol) bool {
	if y.IsFunc() || !u.isVague(y) {
		return false
	}
	v, err := u.program(y)
	return err == nil && (v.presence == Present || v.presence == Exported)
}
