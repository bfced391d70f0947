package build

import (
	"cmp"
	"path/filepath"
	"slices"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
)

// Elsewhere tells whether another object of the base defines a symbol that the change has
// added to this one: first by the objects, for a symbol table does not tell a hidden
// symbol from a static one of the same name.
func (b base) Elsewhere(y *objfile.Symbol) (patchlink.Elsewhere, error) {
	o := b.others
	t, presence, err := o.find(b.number, y)
	if presence == patchlink.Unsure {
		return b.Placement.Elsewhere(y)
	}
	e := patchlink.Elsewhere{Target: t, Presence: presence}
	switch presence {
	case patchlink.Absent:
		e.Wanted = o.wants(b.number, y.Name)
		return e, nil
	case patchlink.Lost:
		e.Why = fault.WhyOf(err)
		t, ok, err := b.Placement.Named(y)
		if !ok || err != nil {
			return e, nil
		}
		e = patchlink.Elsewhere{Target: t, Presence: patchlink.Present}
	}
	e.Old = o.definition(b.number, y.Name, e.Target)
	return e, nil
}

// definition gives the symbol of the object from which a base has what is at a place.
func (o *others) definition(number int, name string, at patchlink.Target) (old *objfile.Symbol) {
	for _, i := range o.definedBy(name) {
		if !o.has(number, i) {
			continue
		}
		p, sym, err := o.place(number, i, name)
		if err != nil || sym == nil {
			continue
		}
		if p != nil {
			if t, err := p.Find(sym); err == nil && t.Vaddr == at.Vaddr {
				return sym
			}
		}
		old = sym
	}
	return old
}

// wants names an object of a base that refers to a name, and leaves the definition to
// others. It is empty if there is none that is known.
func (o *others) wants(number int, name string) string {
	o.index()
	for _, i := range o.wanting[name] {
		given := o.objects[i].Source == "" // by hand, for this base
		if given || o.has(number, i) && slices.Contains(o.objects[i].Images, number) {
			return cmp.Or(o.objects[i].Source, filepath.Base(o.objects[i].File))
		}
	}
	return ""
}
