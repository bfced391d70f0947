package elfsym

import (
	"bytes"
	"cmp"
	"debug/elf"
	"fmt"
	"slices"
	"strings"
)

// codeIndex is what lies where in the executable segments of a module, sorted
// by address: from all of its symbol tables and from .eh_frame.
type codeIndex struct {
	spans  []span
	maxEnd []uint64 // maxEnd[i]: the highest end of spans[0..i]
	tables [DebugData + 1]*Image
	frames bool // .eh_frame was understood to its end
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

// codeOf builds the index of a module once.
func (s *Space) codeOf(m *Module) (*codeIndex, error) {
	if m.code != nil {
		return m.code, nil
	}
	c := &codeIndex{}
	add := func(im *Image, t Table) error {
		c.tables[t] = im
		in := Symtab
		if t == Dynsym {
			in = Dynsym
		}
		return c.addSymbols(m, im.table(in), t)
	}
	if m.Image != nil {
		if err := add(m.Image, Symtab); err != nil {
			return nil, err
		}
		if err := add(m.Image, Dynsym); err != nil {
			return nil, err
		}
		if d := s.debugTable(m); d.image != nil {
			if err := add(d.image, d.table); err != nil {
				return nil, err
			}
		}
		frames, whole := m.Image.frameRanges()
		for _, r := range frames {
			c.spans = append(c.spans, span{start: r.start, end: r.end, what: spanFrame})
		}
		c.frames = whole
	}
	c.sort()
	c.maxEnd = make([]uint64, len(c.spans))
	high := uint64(0)
	for i, sp := range c.spans {
		high = max(high, sp.end)
		c.maxEnd[i] = high
	}
	m.code = c
	return c, nil
}

// addSymbols adds the symbols of a table that lie among code. It looks at no more of
// them than it needs: there may be hundreds of thousands.
func (c *codeIndex) addSymbols(m *Module, st *symtab, t Table) error {
	if st.err != nil {
		return st.err
	}
	n := uint32(len(st.syms) / symSize)
	c.spans = slices.Grow(c.spans, int(n))
	var seg *elf.ProgHeader // of the symbol before
	var sym Sym
	for i := uint32(1); i < n; i++ {
		st.fields(i, &sym)
		if !sym.Defined() {
			continue
		}
		if seg == nil || sym.Value-seg.Vaddr >= seg.Memsz {
			if seg = m.Image.segment(sym.Value); seg == nil {
				continue
			}
		}
		if seg.Flags&elf.PF_X == 0 || bytes.HasPrefix(st.from(i), []byte(".annobin")) {
			continue
		}
		sp := span{start: sym.Value, end: max(sym.Value, sym.Value+sym.Size), index: i, table: t, what: spanLabel}
		if sym.Type == elf.STT_FUNC || sym.Type == sttGNUIFunc {
			sp.what = spanFunc
		}
		c.spans = append(c.spans, sp)
	}
	return nil
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
	st := im.table(Symtab)
	var sym Sym
	st.decode(sp.index, &sym)
	sym.splitVersion()
	if sym.Bind == elf.STB_LOCAL {
		sym.File = st.fileOf(sp.index)
	}
	return m.symbol(sp.table, &sym), true
}

// FuncAt gives the function that holds a runtime address, and the address's
// distance from its entry. It is meant for messages: of several names it takes a
// global one, and a function of unknown size is taken to reach to the next one.
func (s *Space) FuncAt(addr uint64) (Symbol, uint64, bool) {
	m := s.ModuleAt(addr)
	if m == nil {
		return Symbol{}, 0, false
	}
	c, err := s.codeOf(m)
	if err != nil {
		return Symbol{}, 0, false
	}
	v := m.Vaddr(addr)
	// The nearest function that begins at or below the address and covers it.
	nearest := c.after(v) - 1
	for i := nearest; i >= 0; i-- {
		if c.spans[i].what != spanFunc {
			if c.maxEnd[i] <= v && c.spans[i].end > c.spans[i].start {
				return Symbol{}, 0, false
			}
			continue
		}
		start := c.spans[i].start
		var best Symbol
		found := false
		here := c.at(start)
		i = c.after(start) - len(here)
		for _, sp := range here {
			sized := sp.end > sp.start
			if sp.what != spanFunc || sized && sp.end <= v || !sized && start != c.spans[nearest].start {
				continue
			}
			sym, ok := m.symbolOf(c, sp)
			if ok && (!found || best.Bind == elf.STB_LOCAL && sym.Bind != elf.STB_LOCAL) {
				best, found = sym, true
			}
		}
		if found {
			return best, v - start, true
		}
		if c.maxEnd[i] <= v {
			return Symbol{}, 0, false
		}
	}
	return Symbol{}, 0, false
}

// Aliases gives the other function symbols at the address of sym: other names
// of the same code, be it by intention or because the linker or the compiler
// folded functions with equal bodies.
func (s *Space) Aliases(sym Symbol) ([]Symbol, error) {
	c, err := s.codeOf(sym.Module)
	if err != nil {
		return nil, err
	}
	var found symbolSet
	for _, sp := range c.at(sym.Module.Vaddr(sym.Addr)) {
		if sp.what != spanFunc {
			continue
		}
		if a, ok := sym.Module.symbolOf(c, sp); ok && a.Name != sym.Name && a.Name != "" {
			found.add(a)
		}
	}
	return found.list, nil
}

// Extent tells what surrounds a function, as runtime addresses: where it ends,
// where the next thing begins that is known to be no padding, and where the
// previous one ends. Everything counts that a symbol in any table or an FDE in
// .eh_frame knows: functions, labels, data among the code. Without a next one,
// nextStart is the end of the section, or of the segment in a file without
// sections; without a previous one, prevEnd is their beginning.
//
// If a size is not known, the answer is the cautious one: end is that of the
// function's FDE, else nextStart; prevEnd is sym.Addr itself, so that nothing in
// front of the function is taken for padding. nextStart can be less than end if
// something begins inside the function.
func (s *Space) Extent(sym Symbol) (end, nextStart, prevEnd uint64, err error) {
	m := sym.Module
	c, err := s.codeOf(m)
	if err != nil {
		return 0, 0, 0, err
	}
	v := m.Vaddr(sym.Addr)
	seg := m.Image.segment(v)
	if seg == nil {
		return 0, 0, 0, m.Image.damaged("the function %s at %#x is in no segment", sym.Name, v)
	}
	lo, hi := seg.Vaddr, seg.Vaddr+seg.Filesz
	if sec, ok := m.Image.sectionAt(v); ok {
		lo, hi = max(lo, sec.Addr), min(hi, sec.Addr+sec.Size)
	}
	first := c.after(v)
	nextStart = hi
	if first < len(c.spans) {
		nextStart = min(hi, c.spans[first].start)
	}
	end = v + sym.Size
	if sym.Size == 0 {
		end = nextStart
		for _, sp := range c.at(v) {
			if sp.what == spanFrame {
				end = sp.end
			}
		}
	}
	prevEnd = lo
	i := first
	for i > 0 && c.spans[i-1].start == v {
		i--
	}
	if i > 0 && c.spans[i-1].start >= lo {
		prevEnd = min(v, max(lo, c.maxEnd[i-1]))
		// Any of those that begin at the previous address may tell its size.
		known := false
		for _, sp := range c.at(c.spans[i-1].start) {
			known = known || sp.end > sp.start
		}
		if !known {
			prevEnd = v
		}
	}
	if !c.frames && !m.hasAllSymbols(c) {
		// What lies between may be a function that nobody told of.
		nextStart, prevEnd = min(nextStart, end), v
	}
	return m.Addr(end), m.Addr(nextStart), m.Addr(prevEnd), nil
}

// hasAllSymbols reports whether a full symbol table was read.
func (m *Module) hasAllSymbols(c *codeIndex) bool {
	return m.Image.HasSymtab() || c.tables[DebugFile] != nil || c.tables[DebugData] != nil
}

// Clones gives the functions that the compiler made of name: those whose mangled
// name is name followed by a dot and a suffix, such as ".isra.0", ".constprop.0",
// ".part.0" or ".cold". With a nil module it looks in all but patch libraries.
func (s *Space) Clones(m *Module, name string) ([]Symbol, error) {
	modules := []*Module{m}
	if m == nil {
		modules = s.candidates()
	}
	var found symbolSet
	for _, m := range modules {
		d, err := s.derivedOf(m)
		if err != nil {
			return nil, err
		}
		for _, i := range d.behind(name + ".") {
			found.add(d.dotted[i])
		}
	}
	return found.list, nil
}

// Coroutine gives the functions into which the compiler has put the body of a
// function that is a C++20 coroutine, their cold parts included; none if it is not
// one. The frame of a suspended coroutine holds the entries of two of them. clang
// names them after the function, with ".resume", ".destroy" or ".cleanup" behind
// its name. With gcc they are overloads of it that take its frame, a type within
// the function: ".actor" and ".destroy" of "..18_Z8countingl.Frame".
func (s *Space) Coroutine(sym Symbol) ([]Symbol, error) {
	d, err := s.derivedOf(sym.Module)
	if err != nil {
		return nil, err
	}
	list := d.behind(sym.Name + ".")
	frame := fmt.Sprintf("%d%s.Frame.", len(sym.Name)+len(".Frame"), sym.Name)
	for _, i := range d.frames {
		if strings.Contains(d.dotted[i].Name, frame) && !slices.Contains(list, i) {
			list = append(list, i)
		}
	}
	slices.Sort(list)
	var found symbolSet
	for _, i := range list {
		rest, ok := strings.CutPrefix(d.dotted[i].Name, sym.Name+".")
		if !ok {
			_, rest, _ = strings.Cut(d.dotted[i].Name, frame)
		}
		what, _, _ := strings.Cut(rest, ".")
		switch what {
		case "actor", "destroy", "resume", "cleanup":
			found.add(d.dotted[i])
		}
	}
	return found.list, nil
}

// Parts gives the pieces of a function that the compiler moved out of it: its
// ".cold" and ".part" symbols. They belong to it when asking who runs it. If
// several source files have a static function of that name, those of the same
// file are given; where that cannot be known, all.
func (s *Space) Parts(sym Symbol) ([]Symbol, error) {
	clones, err := s.Clones(sym.Module, sym.Name)
	if err != nil {
		return nil, err
	}
	var list []Symbol
	for _, c := range clones {
		suffix := []byte(c.Name[len(sym.Name):])
		if !bytes.HasPrefix(suffix, []byte(".cold")) && !bytes.HasPrefix(suffix, []byte(".part")) {
			continue
		}
		if sym.Bind == elf.STB_LOCAL && sym.File != "" && c.File != "" && sym.File != c.File {
			continue
		}
		list = append(list, c)
	}
	return list, nil
}

// Named reports whether all functions of a module can be expected to have a
// symbol: it has a full symbol table, of its own or in its debug file.
func (s *Space) Named(m *Module) (bool, error) {
	c, err := s.codeOf(m)
	return err == nil && m.hasAllSymbols(c), err
}

// Unnamed gives the range of code around an address that .eh_frame knows and that
// no function symbol begins: in a stripped module, a static function, or a piece
// that the compiler moved out of one.
func (s *Space) Unnamed(addr uint64) (start, end uint64, ok bool) {
	m := s.ModuleAt(addr)
	if m == nil {
		return 0, 0, false
	}
	c, err := s.codeOf(m)
	if err != nil {
		return 0, 0, false
	}
	v := m.Vaddr(addr)
	for i := c.after(v) - 1; i >= 0 && c.maxEnd[i] > v; i-- {
		sp := c.spans[i]
		if sp.what != spanFrame || v < sp.start || v >= sp.end {
			continue
		}
		named := slices.ContainsFunc(c.at(sp.start), func(o span) bool { return o.what == spanFunc })
		return m.Addr(sp.start), m.Addr(sp.end), !named
	}
	return 0, 0, false
}
