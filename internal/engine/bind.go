package engine

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"slices"

	"hotpatch/elfsym"
	"hotpatch/inject"
	"hotpatch/internal/fault"
	"hotpatch/internal/patchfile"
)

// findImages finds the modules of the images that the patch is bound to, by
// their build-ids alone.
func (pl *planner) findImages() error {
	images := make(map[uint32]*elfsym.Module, len(pl.p.Patch.Images))
	for _, im := range pl.p.Patch.Images {
		m, err := pl.t.imageModule(im)
		if err != nil {
			err.What = fmt.Sprintf("cannot apply %q", pl.p.Name)
			pl.refuse(err)
			continue
		}
		images[im.Number] = m
	}
	pl.p.Images = images
	return nil
}

// imageModule finds the one module with the build-id of an image.
func (t *target) imageModule(im patchfile.Image) (*elfsym.Module, *fault.Error) {
	var found, named []*elfsym.Module
	for _, m := range t.space.Modules {
		switch {
		case m.Ours || m.Kind == elfsym.VDSO:
		case im.BuildID.Equal(m.BuildID):
			found = append(found, m)
		case isModule(m, im.Module):
			named = append(named, m)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, &fault.Error{Kind: fault.Unfit, Code: "ambiguous-image", Where: im.Module,
			Why:  fmt.Sprintf("%d modules have its build-id %s, at %#x and %#x", len(found), im.BuildID, found[0].Lo, found[1].Lo),
			Hint: "the process has loaded the same file twice (dlmopen, or a copy of it)"}
	case len(named) > 0:
		return nil, wrongBuild("", named[0], []elfsym.BuildID{im.BuildID})
	}
	return nil, &fault.Error{Kind: fault.Unfit, Code: "build-id", Where: im.Module,
		Why: fmt.Sprintf("no mapped module has build-id %s", im.BuildID), Hint: "use the patch for the build that runs"}
}

// pairCode handles a function that is known by its code: its bytes, as they were
// before any patch of ours, must be those that the patch was made for.
func (pl *planner) pairCode(rec patchfile.Replacement, o offer) error {
	m := pl.p.Images[rec.OldImage]
	if m == nil {
		return nil // findImages has refused it
	}
	addr := m.Addr(rec.OldAddr)
	name := elfsym.Demangle(rec.OldNames[0])
	if !m.InText(addr) || !m.InText(addr+rec.OldSize-1) {
		pl.refuse(&fault.Error{Code: "not-code", What: "cannot replace " + name, Where: fmt.Sprintf("%s, %#x", m.Name, addr), Why: "there is no code at that address"})
		return nil
	}
	code := make([]byte, rec.OldSize)
	if err := pl.read(code, addr); err != nil {
		return err
	}
	if sum := sha256.Sum256(code); sum != rec.OldSHA256 {
		pl.refuse(&fault.Error{Kind: fault.Differs, Code: "base-differs", What: "cannot replace " + name, Where: fmt.Sprintf("%s, %#x", m.Name, addr),
			Why:  fmt.Sprintf("its %d bytes are not those that the patch was made for (sha256 %.6x…, wanted %.6x…), though the build-id is", rec.OldSize, sum[:6], rec.OldSHA256[:6]),
			Hint: "a breakpoint, a uprobe or another patcher is in the function, or the module was altered"})
		return nil
	}
	s := elfsym.Symbol{Name: rec.OldNames[0], Module: m, Addr: addr, Size: rec.OldSize, Type: elf.STT_FUNC}
	if f, off, ok := pl.t.space.FuncAt(addr); ok && f.Module == m {
		if off != 0 {
			pl.refuse(&fault.Error{Code: "not-an-entry", What: "cannot replace " + name, Where: fmt.Sprintf("%s, %#x", m.Name, addr),
				Why: fmt.Sprintf("that address is %d bytes inside %s", off, f.Demangled())})
			return nil
		}
		s = f
	}
	pl.wanted[s.Name] = true
	for _, n := range rec.OldNames {
		pl.wanted[n] = true
	}
	if err := pl.add(s, offer{s.Name, o.addr}); err != nil {
		return err
	}
	if r := pl.byAddr[addr]; r != nil {
		r.Exact = true
		for _, n := range rec.OldNames {
			if !slices.Contains(r.Names, n) {
				r.Names = append(r.Names, n)
			}
		}
	}
	return nil
}

// near says where the patch library is to be mapped: within reach of every image
// that it is bound to by 32 bits, which it must be; else near what it changes,
// which spares it long ways.
func (p *Plan) near() inject.Near {
	n := inject.Near{Hi: 1 << 47}
	var modules []*elfsym.Module
	for _, b := range p.Patch.Binds {
		if !b.Kind.Near() {
			continue
		}
		n.Must = true
		if b.Image == 0 {
			n.Hi = min(n.Hi, 1<<31) // what is in the library must have an address of 31 bits
		} else if m := p.Images[b.Image]; b.Kind.Relative() && m != nil && !slices.Contains(modules, m) {
			modules = append(modules, m)
		}
	}
	if len(modules) == 0 {
		for _, r := range p.Replacements {
			if !slices.Contains(modules, r.Module) {
				modules = append(modules, r.Module)
			}
		}
	}
	for i, m := range modules {
		lo, hi := islandRange(m)
		if i == 0 {
			n.Below = islandWish(m)
		}
		if !n.Must && (max(lo, n.Lo) >= min(hi, n.Hi)) {
			break // they are too far apart: near the first ones will do
		}
		n.Lo, n.Hi = max(lo, n.Lo), min(hi, n.Hi)
	}
	return n
}

// boundPlace is a place of the library with the bytes that it gets.
type boundPlace struct {
	addr  uint64 // in the target
	bytes []byte
}

// boundPlaces works out what the places of a library get whose load bias is bias,
// in ascending order. A value without room is fault "out-of-reach".
func boundPlaces(p *patchfile.Patch, bias uint64, images map[uint32]*elfsym.Module) ([]boundPlace, error) {
	out := make([]boundPlace, 0, len(p.Binds))
	for i := range p.Binds {
		b := &p.Binds[i]
		place, sym, where := bias+b.Place, bias+b.Addr, p.File
		if b.Image != 0 {
			m := images[b.Image]
			if m == nil {
				return nil, &fault.Error{Kind: fault.Unfit, Code: "build-id", What: fmt.Sprintf("cannot bind %q", p.Name), Why: fmt.Sprintf("image %d is not mapped", b.Image)}
			}
			sym, where = m.Addr(b.Addr), m.Name
		}
		value, ok := b.Encode(place, sym)
		if !ok {
			return nil, &fault.Error{Kind: fault.Unfit, Code: "out-of-reach", What: fmt.Sprintf("cannot bind %q", p.Name), Where: where,
				Why:  fmt.Sprintf("the place at %#x cannot hold the address %#x (%v%+d, %s)", place, sym, b.Kind, b.Addend, elfsym.Demangle(b.Symbol)),
				Hint: "if the library is mapped since an earlier time, revert --unload takes it out, and it can be mapped anew"}
		}
		out = append(out, boundPlace{addr: place, bytes: value})
	}
	return out, nil
}

// bindPlaces fills the bound places of the library. Nothing calls its code yet.
// Places that are near each other are written together, with what lies between.
func (a *application) bindPlaces() error {
	places, err := boundPlaces(a.plan.Patch, a.bias, a.plan.Images)
	if err != nil {
		return err
	}
	const most = 1 << 12 // bytes written at once
	for len(places) > 0 {
		n := 1
		for n < len(places) && places[n].addr&^(most-1) == places[0].addr&^(most-1) {
			n++
		}
		last := places[n-1]
		b := make([]byte, last.addr+uint64(len(last.bytes))-places[0].addr)
		if err := a.t.mem.ReadAt(b, places[0].addr); err != nil {
			return err
		}
		before := bytes.Clone(b)
		for _, p := range places[:n] {
			copy(b[p.addr-places[0].addr:], p.bytes)
		}
		if !bytes.Equal(b, before) {
			if err := a.t.writeMem(b, places[0].addr); err != nil {
				return fmt.Errorf("bind %d places of %q: %w", n, a.plan.Name, err)
			}
		}
		places = places[n:]
	}
	return nil
}
