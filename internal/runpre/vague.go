package runpre

import (
	"debug/elf"

	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
)

// Vague tells what the symbol tables of the image know of a definition that several objects
// can have. Unsure is the answer where there is no complete table; no fault comes with it.
func (im *Image) Vague(y *objfile.Symbol) (patchlink.Target, patchlink.Presence, error) {
	p := &Placement{m: &matcher{im: im}} // of no object
	t := p.target()
	if y.Type == elf.STT_TLS {
		return p.vagueThreadLocal(y)
	}
	found := false
	for _, s := range im.names[y.Name] {
		switch {
		case s.typ == elf.STT_TLS || s.typ == elf.STT_GNU_IFUNC || found && s.value == t.Vaddr:
		case found:
			return t, patchlink.Lost, p.fault("ambiguous-code", y, "the image has more than one of the name")
		default:
			found, t.Vaddr, t.Size = true, s.value, s.size
		}
	}
	// Where code finds it by a slot, another module's may stand in for it.
	for _, at := range im.places {
		if d := im.relocs[at]; d.typ == elf.R_X86_64_GLOB_DAT && d.name == y.Name && (!found || !im.program) {
			return patchlink.Target{Image: t.Image, Module: t.Module, Kind: patchlink.GOT, Vaddr: at, Size: t.Size, Own: t.Vaddr}, patchlink.Present, nil
		}
	}
	switch {
	case found:
		return t, patchlink.Present, nil
	case im.full && (im.locals || isVisible(y)):
		return t, patchlink.Absent, nil
	}
	return t, patchlink.Unsure, nil
}

// Vague tells what the image's symbol tables know: see Image.Vague.
func (p *Placement) Vague(y *objfile.Symbol) (patchlink.Target, patchlink.Presence, error) {
	return p.m.im.Vague(y)
}

// vagueThreadLocal does so for a thread-local variable.
func (p *Placement) vagueThreadLocal(y *objfile.Symbol) (patchlink.Target, patchlink.Presence, error) {
	im := p.m.im
	for _, s := range im.names[y.Name] {
		if s.typ == elf.STT_TLS {
			t, err := p.threadLocal(y)
			if err != nil {
				return t, patchlink.Lost, err
			}
			return t, patchlink.Present, nil
		}
	}
	if im.full && im.locals {
		return p.target(), patchlink.Absent, nil
	}
	return p.target(), patchlink.Unsure, nil
}

// Elsewhere tells what the image's symbol tables know: where a global symbol of the name is.
func (p *Placement) Elsewhere(y *objfile.Symbol) (patchlink.Elsewhere, error) {
	t, ok, err := p.Named(y)
	switch {
	case err != nil:
		return patchlink.Elsewhere{Target: t, Presence: patchlink.Lost, Why: err.Error()}, nil
	case ok:
		return patchlink.Elsewhere{Target: t, Presence: patchlink.Present}, nil
	case p.m.im.full && p.m.im.locals:
		return patchlink.Elsewhere{Presence: patchlink.Absent}, nil
	}
	return patchlink.Elsewhere{Presence: patchlink.Unsure, Why: "the image has no symbol table"}, nil
}
