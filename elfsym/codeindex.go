package elfsym

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"slices"
)

// codeIndex is what lies where in the executable segments of a module, sorted
// by address: from all of its symbol tables and from .eh_frame. It may be one of a
// window only: then it answers what codeNear promises.
type codeIndex struct {
	spans  []span
	maxEnd []uint64 // maxEnd[i]: the highest end of spans[0..i], and of all that begin below the window
	tables [DebugData + 1]*Image
	frames bool // .eh_frame was understood to its end

	from, to     uint64 // the link-time addresses of which it knows what begins there
	below, above bool   // something begins below from, or at to or above
	reach        uint64 // the highest end of what begins below from
}

// span is a range of code or of data among code. It is small: there is one for
// every symbol.
type span struct {
	start, end uint64 // link-time; end == start: the size is not known
	index      uint32 // of the symbol in its table
	table      Table
	what       spanKind
}

type spanKind uint8

const (
	spanFunc  spanKind = iota // a function symbol
	spanLabel                 // any other symbol: a label of hand-written code, data
	spanFrame                 // an FDE
)

const (
	smallWindow    = 1 << 12 // bytes on both sides of an address, at first
	largeWindow    = 1 << 20 // and at last
	maxCodeWindows = 16      // how many windows of a module are worth it
	manySpans      = 1 << 15 // symbols; for fewer there is no need of windows
	whole          = ^uint64(0)
)

// codeOf builds the index of a whole module once.
func (s *Space) codeOf(m *Module) (*codeIndex, error) {
	if m.code == nil {
		c, err := s.indexCode(m, 0, whole)
		if err != nil {
			return nil, err
		}
		m.code, m.windows = c, nil
	}
	return m.code, nil
}

// codeNear gives an index that knows all that begins at a link-time address, what begins
// next to it on both sides, and all that reaches over it: of a window, if the module is
// large and that is enough, since few addresses are asked for usually.
func (s *Space) codeNear(m *Module, vaddr uint64) (*codeIndex, error) {
	if m.code != nil || m.Image == nil || !m.Image.manySymbols() {
		return s.codeOf(m)
	}
	for _, c := range m.windows {
		if c.knows(vaddr) {
			return c, nil
		}
	}
	for size := uint64(smallWindow); size <= largeWindow && len(m.windows) < maxCodeWindows; size *= 16 {
		c, err := s.indexCode(m, max(vaddr, size)-size, vaddr+size)
		if err != nil {
			return nil, err
		}
		if c.knows(vaddr) {
			m.windows = append(m.windows, c)
			return c, nil
		}
	}
	return s.codeOf(m)
}

// manySymbols reports whether it takes long to look at all symbols.
func (im *Image) manySymbols() bool {
	syms, _, err := im.symtabSections()
	return err == nil && syms.Size > manySpans*symSize
}

// knows reports whether the index answers for an address as that of the whole module does.
func (c *codeIndex) knows(vaddr uint64) bool {
	if vaddr < c.from || vaddr >= c.to || c.below && c.reach > vaddr {
		return false
	}
	i := c.after(vaddr)
	return (!c.above || i < len(c.spans)) && (!c.below || i > 0 && c.spans[0].start < vaddr)
}

// indexCode builds the index of what begins in [from, to).
func (s *Space) indexCode(m *Module, from, to uint64) (*codeIndex, error) {
	c := &codeIndex{from: from, to: to}
	if m.Image != nil {
		tables := []Table{Symtab, Dynsym}
		c.tables[Symtab], c.tables[Dynsym] = m.Image, m.Image
		if d := s.debugTable(m); d.image != nil {
			tables = append(tables, d.table)
			c.tables[d.table] = d.image
		}
		for _, t := range tables {
			if to == whole {
				// All names may be asked for.
				if err := c.tables[t].table(inFile(t)).err; err != nil {
					return nil, err
				}
			}
			if err := c.addSymbols(m, t); err != nil {
				return nil, err
			}
		}
		f := m.frameRanges()
		for _, r := range f.list {
			c.add(span{start: r.start, end: r.end, what: spanFrame})
		}
		c.frames = f.whole
	}
	c.sort()
	c.maxEnd = make([]uint64, len(c.spans))
	high := c.reach
	for i, sp := range c.spans {
		high = max(high, sp.end)
		c.maxEnd[i] = high
	}
	return c, nil
}

// frames is what .eh_frame of a module says.
type frames struct {
	list  []codeRange
	whole bool
}

// frameRanges reads .eh_frame once.
func (m *Module) frameRanges() *frames {
	if m.frames == nil {
		m.frames = &frames{}
		m.frames.list, m.frames.whole = m.Image.frameRanges()
	}
	return m.frames
}

// add adds a span, or notes on which side of the window it is.
func (c *codeIndex) add(sp span) {
	switch {
	case sp.start < c.from:
		c.below, c.reach = true, max(c.reach, sp.end)
	case sp.start >= c.to:
		c.above = true
	default:
		c.spans = append(c.spans, sp)
	}
}

// addSymbols adds the symbols of a table that lie among code. It looks at no more of
// them than it needs: there may be hundreds of thousands.
func (c *codeIndex) addSymbols(m *Module, t Table) error {
	x, err := c.tables[t].source(inFile(t))
	if err != nil {
		return err
	}
	if c.to == whole {
		c.spans = slices.Grow(c.spans, int(x.entries/symSize))
	}
	le := binary.LittleEndian
	var seg *elf.ProgHeader // of the symbol before
	var failed error
	err = x.each(func(i uint32, entry []byte) bool {
		value, size := le.Uint64(entry[8:]), le.Uint64(entry[16:])
		if value < c.from && c.below && value+size <= c.reach && value+size >= value || value >= c.to && c.above {
			return true // as most of a large module: nothing that is not known
		}
		if seg == nil || value-seg.Vaddr >= seg.Memsz {
			if seg = m.Image.segment(value); seg == nil {
				return true
			}
		}
		if seg.Flags&elf.PF_X == 0 {
			return true
		}
		sp := span{start: value, end: max(value, value+size), index: i, table: t, what: spanLabel}
		sym := Sym{Type: elf.SymType(entry[4] & 0xf), Section: elf.SectionIndex(le.Uint16(entry[6:]))}
		if !sym.Defined() {
			return true
		}
		if sym.Type == elf.STT_FUNC || sym.Type == sttGNUIFunc {
			sp.what = spanFunc
		} else if value >= c.from && value < c.to {
			var annobin bool
			if annobin, failed = x.begins(le.Uint32(entry), ".annobin"); failed != nil || annobin {
				return failed == nil
			}
		}
		c.add(sp)
		return true
	})
	if err == nil {
		err = failed
	}
	return err
}

// sort orders the spans. They are put into as many buckets of addresses as there are
// spans, and each bucket, which has few, is ordered: code is spread evenly enough for
// that to be much faster than to compare all with all.
func (c *codeIndex) sort() {
	compare := func(a, b span) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.what, b.what), cmp.Compare(a.table, b.table), cmp.Compare(a.index, b.index))
	}
	const few = 1000
	if len(c.spans) < few {
		slices.SortFunc(c.spans, compare)
		return
	}
	low, high := c.spans[0].start, c.spans[0].start
	for i := range c.spans {
		low, high = min(low, c.spans[i].start), max(high, c.spans[i].start)
	}
	shift := 0
	for (high-low)>>shift >= uint64(len(c.spans)) {
		shift++
	}
	ends := make([]int, (high-low)>>shift+1) // of the buckets; at first their sizes
	for i := range c.spans {
		ends[(c.spans[i].start-low)>>shift]++
	}
	sum := 0
	for i, n := range ends {
		ends[i], sum = sum, sum+n
	}
	sorted := make([]span, len(c.spans))
	for _, sp := range c.spans {
		i := (sp.start - low) >> shift
		sorted[ends[i]] = sp
		ends[i]++
	}
	first := 0
	for _, end := range ends {
		if end-first > 1 {
			slices.SortFunc(sorted[first:end], compare)
		}
		first = end
	}
	c.spans = sorted
}

// after gives the index of the first span that starts above the address.
func (c *codeIndex) after(vaddr uint64) int {
	i, _ := slices.BinarySearchFunc(c.spans, vaddr, func(s span, a uint64) int {
		if s.start <= a {
			return -1
		}
		return 1
	})
	return i
}

// at gives the spans that start at the address.
func (c *codeIndex) at(vaddr uint64) []span {
	hi := c.after(vaddr)
	lo := hi
	for lo > 0 && c.spans[lo-1].start == vaddr {
		lo--
	}
	return c.spans[lo:hi]
}

// symbolOf makes the Symbol of a span that is one.
func (m *Module) symbolOf(c *codeIndex, sp span) (Symbol, bool) {
	im := c.tables[sp.table]
	if im == nil || sp.what == spanFrame {
		return Symbol{}, false
	}
	if sp.table == Dynsym {
		sym, err := im.DynSym(sp.index)
		return m.symbol(Dynsym, &sym), err == nil
	}
	sym, err := im.symtabEntry(sp.index)
	return m.symbol(sp.table, &sym), err == nil
}
