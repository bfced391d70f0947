package unwind

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
)

// Limits for foreign tables, far above what compilers make: the largest
// .eh_frame of a distribution's programs has some tens of megabytes.
const (
	maxTable   = 256 << 20 // bytes of .eh_frame or .debug_frame
	maxFDEs    = 4 << 20
	maxCIEs    = 1 << 20
	maxProgram = 1 << 20 // bytes of call frame instructions of one record
)

// table is a parsed .eh_frame or .debug_frame. Addresses are link-time ones.
type table struct {
	data []byte
	addr uint64 // of data[0], for relative pointers
	cies []cie  // in the order of their offsets
	fdes []fde  // in the order of their starts
}

// cie is what several functions have in common (DWARF 5, 6.4.1).
type cie struct {
	at         uint64 // offset in data
	codeAlign  uint64
	dataAlign  int64
	pointers   byte // encoding of addresses
	augmented  bool // its FDEs have a length of augmentation data
	signal     bool // 'S': the frame of a signal trampoline
	bad        bool // not understood; neither are its FDEs
	start, end uint32
}

// fde describes the code in [lo, hi).
type fde struct {
	lo, hi     uint64
	cie        uint32 // index
	start, end uint32 // its instructions, offsets in data
	clash      bool   // another one describes part of the same code differently
}

// find gives the FDE that describes the code at a link-time address.
func (t *table) find(vaddr uint64) *fde {
	lo, hi := 0, len(t.fdes)
	for lo < hi { // the first one that starts above the address
		mid := int(uint(lo+hi) >> 1)
		if t.fdes[mid].lo <= vaddr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 || t.fdes[lo-1].hi <= vaddr {
		return nil
	}
	return &t.fdes[lo-1]
}

// format says which of the two formats a table has, and how much of it.
type format struct {
	eh bool // .eh_frame, else .debug_frame
	// open: the size of an .eh_frame is not known, only that it is no larger;
	// it ends with a record of length 0.
	open bool
	// fixed: the image is mapped at its link-time addresses, so that absolute
	// addresses in .eh_frame mean something.
	fixed bool
}

// record is one entry of a table.
type record struct {
	at     uint64 // its offset
	body   uint64 // of what follows the CIE pointer
	end    uint64
	isCIE  bool
	cieAt  uint64 // of an FDE: the offset of its CIE
	skip   bool   // of a form that readers disagree about
	id64   bool   // 64-bit DWARF
	finish bool   // the end mark
}

// next reads the header of the record at an offset. It gives ok false if the
// table is damaged there.
func (t *table) next(at uint64, f format) (r record, ok bool) {
	c := cursor{b: t.data, at: int(at)}
	r.at = at
	n := uint64(c.u32())
	if n == 0 {
		r.finish, r.end = true, at+4
		return r, !c.bad
	}
	if n == 0xffffffff {
		n, r.id64 = c.u64(), true
	} else if n >= 0xfffffff0 {
		return r, false // reserved (DWARF 5, 7.2.2)
	}
	if c.bad || n > uint64(len(t.data)-c.at) {
		return r, false
	}
	r.end = uint64(c.at) + n
	idAt := uint64(c.at)
	switch {
	case f.eh && r.id64:
		// The size of the CIE pointer is 4 bytes for some and 8 for others.
		r.skip = true
		return r, true
	case f.eh:
		id := uint64(c.u32())
		r.isCIE = id == 0
		r.cieAt = idAt - id
	case r.id64:
		r.cieAt = c.u64()
		r.isCIE = r.cieAt == ^uint64(0)
	default:
		r.cieAt = uint64(c.u32())
		r.isCIE = r.cieAt == 0xffffffff
	}
	r.body = uint64(c.at)
	return r, !c.bad && r.body <= r.end
}

// parseTable reads a whole table. keep says whether an address can be that of
// code; FDEs for anything else (functions that the linker left out) are ignored.
// The result is nil if and only if there is an error.
func parseTable(data []byte, addr uint64, f format, keep func(uint64) bool) (*table, error) {
	if len(data) > maxTable {
		return nil, fmt.Errorf("it has %d bytes and no more than %d are accepted", len(data), maxTable)
	}
	t := &table{data: data, addr: addr}
	for _, cies := range []bool{true, false} {
		for at := uint64(0); at < uint64(len(data)); {
			if f.eh && !f.open && len(data)-int(at) < 4 {
				break // padding
			}
			r, ok := t.next(at, f)
			if !ok {
				return nil, fmt.Errorf("the record at offset %#x is damaged", at)
			}
			at = r.end
			switch {
			case r.finish && f.open:
				at = uint64(len(data))
			case r.finish || r.skip || r.isCIE != cies:
				// An end mark in the middle comes from start files.
			case r.isCIE:
				if len(t.cies) >= maxCIEs {
					return nil, fmt.Errorf("it has more than %d CIEs", maxCIEs)
				}
				t.cies = append(t.cies, t.parseCIE(r, f))
			default:
				if len(t.fdes) >= maxFDEs {
					return nil, fmt.Errorf("it has more than %d FDEs", maxFDEs)
				}
				d, ok := t.parseFDE(r, f)
				if ok && d.lo < d.hi && keep(d.lo) && keep(d.hi-1) {
					t.fdes = append(t.fdes, d)
				}
			}
		}
	}
	t.sort()
	return t, nil
}

// parseCIE reads a common information entry.
func (t *table) parseCIE(r record, f format) cie {
	c := cursor{b: t.data[:r.end], at: int(r.body)}
	x := cie{at: r.at, bad: true}
	version := c.u8()
	aug := c.cstring()
	switch {
	case version == 1, version == 3:
	case version == 4 && !f.eh:
		if c.u8() != 8 || c.u8() != 0 { // size of an address, of a segment selector
			return x
		}
	default:
		return x
	}
	x.codeAlign, x.dataAlign = c.uleb(), c.sleb()
	ra := uint64(0)
	if version == 1 {
		ra = uint64(c.u8())
	} else {
		ra = c.uleb()
	}
	if c.bad || ra != regRA {
		return x
	}
	if len(aug) > 0 && !t.parseAugmentation(&x, &c, aug) {
		return x
	}
	if x.pointers == peAbsolute && f.eh && !f.fixed {
		return x // the dynamic linker was to relocate it
	}
	x.start, x.end = uint32(c.at), uint32(r.end)
	x.bad = c.bad || x.end-x.start > maxProgram
	return x
}

// parseAugmentation reads the augmentation data that the letters describe.
func (t *table) parseAugmentation(x *cie, c *cursor, aug []byte) bool {
	if aug[0] != 'z' {
		return false
	}
	x.augmented = true
	n := c.uleb()
	from := c.at
	data := c.take(n)
	if c.bad {
		return false
	}
	a := cursor{b: data}
	for _, letter := range aug[1:] {
		switch letter {
		case 'R':
			x.pointers = a.u8()
		case 'L':
			a.u8()
		case 'P':
			enc := a.u8()
			if enc&0x70 == 0x50 || enc == peOmit {
				return false // aligned: its size depends on its place
			}
			a.value(enc)
		case 'S':
			x.signal = true
		default:
			return false
		}
	}
	c.at = from + int(n)
	return !a.bad
}

// parseFDE reads a frame description entry; ok is false if it is not understood.
func (t *table) parseFDE(r record, f format) (d fde, ok bool) {
	i, found := slices.BinarySearchFunc(t.cies, r.cieAt, func(c cie, at uint64) int { return cmp.Compare(c.at, at) })
	if !found || t.cies[i].bad {
		return d, false
	}
	x := &t.cies[i]
	c := cursor{b: t.data[:r.end], at: int(r.body)}
	d.cie = uint32(i)
	d.lo = c.pointer(x.pointers, t.addr)
	size := c.value(x.pointers)
	d.hi = d.lo + size
	if x.augmented {
		c.take(c.uleb())
	}
	d.start, d.end = uint32(c.at), uint32(r.end)
	if c.bad || d.hi < d.lo || int64(size) < 0 || d.end-d.start > maxProgram {
		return d, false
	}
	return d, true
}

// sort puts the FDEs in order, drops those that say the same again, and marks
// those that contradict each other.
func (t *table) sort() {
	slices.SortFunc(t.fdes, func(a, b fde) int {
		return cmp.Or(cmp.Compare(a.lo, b.lo), cmp.Compare(a.hi, b.hi), cmp.Compare(a.start, b.start))
	})
	kept := t.fdes[:0]
	widest := -1 // the one that reaches furthest so far
	for _, d := range t.fdes {
		if n := len(kept); n > 0 && t.same(&kept[n-1], &d) {
			continue
		}
		if widest >= 0 && d.lo < kept[widest].hi {
			d.clash, kept[widest].clash = true, true
		}
		kept = append(kept, d)
		if n := len(kept) - 1; widest < 0 || d.hi >= kept[widest].hi {
			widest = n
		}
	}
	t.fdes = slices.Clip(kept)
}

// same reports whether two FDEs say the same of the same code.
func (t *table) same(a, b *fde) bool {
	return a.lo == b.lo && a.hi == b.hi && a.cie == b.cie && bytes.Equal(t.data[a.start:a.end], t.data[b.start:b.end])
}
