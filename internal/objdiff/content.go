package objdiff

import (
	"bytes"
	"debug/elf"
	"slices"
	"strings"

	"hotpatch/internal/objfile"
)

// place is a stretch of a section's bytes.
type place struct {
	s      *objfile.Section
	lo, hi uint64
}

// pair is two places that are being compared, or have been.
type pair struct{ pre, post place }

// sameRef reports whether two references mean the same thing. Things with an
// identity are the same if one continues the other; constants are the same if
// their content is.
func (d *differ) sameRef(p, q objfile.Ref) bool {
	if p.Reloc.Type != q.Reloc.Type && !(isCall(p) && isCall(q)) {
		return false
	}
	a, b := p.Sym, q.Sym
	x, stub := typeStub(p)
	y, stub2 := typeStub(q)
	switch {
	case stub || stub2:
		return stub && stub2 && d.sameBytes(x, y, false)
	case byContent(a) != byContent(b):
		return false
	case byContent(a):
		return d.sameConstant(a, p.Off, b, q.Off, p.Reloc.Type)
	case a.Index == 0 && b.Index == 0: // R_X86_64_NONE, TLSLD, absolute addresses
		return p.Off == q.Off
	case a.Type == elf.STT_SECTION || b.Type == elf.STT_SECTION:
		return d.sameUnnamed(a, b) && p.Off == q.Off
	}
	return p.Off == q.Off && (d.twin[b] == a || d.anyNumber && sameButForNumber(a, b))
}

// isCall reports whether a reference can be that of a call. Assemblers write
// R_X86_64_PC32 for one of a local function and R_X86_64_PLT32 else, and linkers
// make the same of both.
func isCall(r objfile.Ref) bool {
	return r.Sym.IsFunc() && (r.Reloc.Type == elf.R_X86_64_PC32 || r.Reloc.Type == elf.R_X86_64_PLT32)
}

// typeStub gives the cell that a reference leads to, if it is one of those without
// a name that compilers put into .data, where exception tables find the type
// information of what they catch.
func typeStub(r objfile.Ref) (place, bool) {
	s := r.Sym.Section
	if s == nil || r.Sym.Type != elf.STT_SECTION || s.Flags&elf.SHF_WRITE == 0 || r.Off < 0 || uint64(r.Off) > s.Size || s.Size-uint64(r.Off) < 8 {
		return place{}, false
	}
	at := uint64(r.Off)
	cell := s.Within(at, at+8)
	if len(cell) != 1 || cell[0].Off != at || cell[0].Type != elf.R_X86_64_64 {
		return place{}, false
	}
	// Assemblers refer to local type information by its section.
	if to := s.Resolve(cell[0], at); to.Off != 0 || !strings.HasPrefix(to.Sym.Name, "_ZTI") {
		return place{}, false
	}
	return place{s, at, at + 8}, true
}

// sameUnnamed reports whether two sections without a symbol for the place that
// is meant are the same: by name, and only if all of their content is.
func (d *differ) sameUnnamed(a, b *objfile.Symbol) bool {
	s, t := a.Section, b.Section
	return s != nil && t != nil && a.Type == b.Type && s.Name == t.Name && isCode(s) == isCode(t) &&
		d.sameBytes(place{s, 0, s.Size}, place{t, 0, t.Size}, true)
}

// sameConstant compares what constants hold at the offsets.
func (d *differ) sameConstant(a *objfile.Symbol, aoff int64, b *objfile.Symbol, boff int64, kind elf.R_X86_64) bool {
	s, t := a.Section, b.Section
	if s.Flags&mergeFlags != t.Flags&mergeFlags || s.EntSize != t.EntSize {
		return false
	}
	if a.Type != elf.STT_SECTION && b.Type != elf.STT_SECTION && aoff == boff && aoff < 0 && s.Flags&elf.SHF_MERGE != 0 {
		aoff, boff = 0, 0 // linkers move what the symbol is at, and count from there, here backwards
	}
	i, j := int64(a.Value)+aoff, int64(b.Value)+boff
	inside := i >= 0 && uint64(i) < s.Size && j >= 0 && uint64(j) < t.Size
	merge := s.Flags&elf.SHF_MERGE != 0 && s.EntSize > 0
	switch {
	case inside && merge && s.Flags&elf.SHF_STRINGS != 0:
		x, ok := stringAt(s, uint64(i))
		y, ok2 := stringAt(t, uint64(j))
		return ok && ok2 && bytes.Equal(x, y)
	case inside && merge:
		n := s.EntSize
		if uint64(i)%n != uint64(j)%n {
			return false
		}
		return d.sameBytes(entity(s, uint64(i)), entity(t, uint64(j)), false)
	case sized(a) && sized(b):
		return aoff == boff && a.Size == b.Size && d.sameBytes(whole(a), whole(b), false)
	case sized(a) != sized(b):
		return false
	case inside && s.Name == ".rodata" && t.Name == ".rodata" && kind != elf.R_X86_64_32S:
		return d.samePadded(d.atom(d.pre, s, uint64(i)), d.atom(d.post, t, uint64(j)))
	}
	// A function's own constants: its jump tables. An offset into them means
	// something only within the same whole.
	return i == j && s.Size == t.Size && d.sameBytes(place{s, 0, s.Size}, place{t, 0, t.Size}, false)
}

const mergeFlags = elf.SHF_MERGE | elf.SHF_STRINGS | elf.SHF_WRITE

func sized(y *objfile.Symbol) bool { return y.Type != elf.STT_SECTION && y.Size > 0 }

func whole(y *objfile.Symbol) place { return place{y.Section, y.Value, y.Value + y.Size} }

// entity gives the mergeable constant that covers an offset.
func entity(s *objfile.Section, off uint64) place {
	lo := off - off%s.EntSize
	return place{s, lo, min(lo+s.EntSize, s.Size)}
}

// stringAt gives the string at an offset, with its end.
func stringAt(s *objfile.Section, off uint64) ([]byte, bool) {
	n := s.EntSize
	zero := make([]byte, min(n, 8))
	if n > 8 || len(s.Within(off, s.Size)) > 0 {
		return nil, false
	}
	for i := off; i+n <= s.Size; i += n {
		if bytes.Equal(s.Data[i:i+n], zero) {
			return s.Data[off : i+n], true
		}
	}
	return nil, false
}

// atom gives the constant without a name at an offset of .rodata, up to the next
// place that anything refers to.
func (d *differ) atom(o *objfile.Object, s *objfile.Section, off uint64) place {
	bounds := d.bounds[s]
	if bounds == nil {
		bounds = append(referredPlaces(o, s), s.Size)
		slices.Sort(bounds)
		d.bounds[s] = bounds
	}
	i, _ := slices.BinarySearch(bounds, off+1)
	if i == len(bounds) {
		return place{s, off, s.Size}
	}
	return place{s, off, bounds[i]}
}

// referredPlaces gives the offsets of s that code and data refer to.
func referredPlaces(o *objfile.Object, s *objfile.Section) (list []uint64) {
	add := func(r objfile.Ref) {
		if at := int64(r.Sym.Value) + r.Off; r.Sym.Section == s && at >= 0 && uint64(at) <= s.Size {
			list = append(list, uint64(at))
		}
	}
	for _, y := range s.Symbols {
		list = append(list, y.Value, y.Value+y.Size)
	}
	for _, from := range o.Sections {
		if from.Flags&elf.SHF_ALLOC == 0 || len(from.Relocs) == 0 {
			continue
		}
		if isCode(from) {
			insts, err := from.Decode(0, from.Size)
			if err != nil {
				continue // its functions are compared by their relocations as they stand
			}
			for _, in := range insts {
				for _, r := range in.Refs {
					add(r)
				}
			}
			continue
		}
		for _, r := range from.Relocs {
			add(from.Resolve(r, r.Off))
		}
	}
	return list
}

// samePadded compares two constants of which one may have more padding behind
// it: zeros, fewer than the alignment of the section.
func (d *differ) samePadded(p, q place) bool {
	trim := func(p place, n uint64) (place, bool) {
		for i := p.lo + n; i < p.hi; i++ {
			if p.s.Data[i] != 0 {
				return p, false
			}
		}
		return place{p.s, p.lo, p.lo + n}, p.hi-p.lo-n < max(p.s.Align, 32) && len(p.s.Within(p.lo+n, p.hi)) == 0
	}
	ok := true
	n := min(p.hi-p.lo, q.hi-q.lo)
	if p.hi-p.lo > n {
		p, ok = trim(p, n)
	} else if q.hi-q.lo > n {
		q, ok = trim(q, n)
	}
	return ok && d.sameBytes(p, q, false)
}

// maxDepth bounds how far constants may lead to other constants.
const maxDepth = 10_000

// sameBytes compares the bytes of two places and what their relocations mean. own
// says that PC-relative values count from their own place, and not from the start
// of the place given.
//
// Constants can refer to each other in circles: a pair that is being compared
// already counts as the same.
func (d *differ) sameBytes(p, q place, own bool) bool {
	if p.hi-p.lo != q.hi-q.lo || (p.s.Data == nil) != (q.s.Data == nil) {
		return false
	}
	if p.s.Data == nil {
		return true
	}
	key := pair{p, q}
	if same, ok := d.seen[key]; ok {
		return same
	}
	if d.depth == maxDepth {
		return false
	}
	d.seen[key] = true
	d.depth++
	same := d.compareBytes(p, q, own)
	d.depth--
	if !same {
		// Whatever counted on this pair being the same has to be looked at again.
		clear(d.seen)
		d.seen[key] = false
	}
	return same
}

func (d *differ) compareBytes(p, q place, own bool) bool {
	pr, qr := p.s.Within(p.lo, p.hi), q.s.Within(q.lo, q.hi)
	if len(pr) != len(qr) {
		return false
	}
	at := uint64(0) // what is equal so far
	for i := range pr {
		off, n := pr[i].Off-p.lo, uint64(pr[i].Width())
		if qr[i].Off-q.lo != off || pr[i].Type != qr[i].Type || off+n > p.hi-p.lo {
			return false
		}
		if off > at && !bytes.Equal(p.s.Data[p.lo+at:p.lo+off], q.s.Data[q.lo+at:q.lo+off]) {
			return false
		}
		at = max(at, off+n)
	}
	if !bytes.Equal(p.s.Data[p.lo+at:p.hi], q.s.Data[q.lo+at:q.hi]) {
		return false
	}
	for i := range pr {
		ps, qs := p.lo, q.lo
		if own {
			ps, qs = pr[i].Off, qr[i].Off
		}
		if !d.sameRef(p.s.Resolve(pr[i], ps), q.s.Resolve(qr[i], qs)) {
			return false
		}
	}
	return true
}
