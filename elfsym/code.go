package elfsym

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"
	"strings"
)

// FuncAt gives the function that holds a runtime address, and the address's
// distance from its entry. It is meant for messages: of several names it takes a
// global one, and a function of unknown size is taken to reach to the next one.
func (s *Space) FuncAt(addr uint64) (Symbol, uint64, bool) {
	m := s.ModuleAt(addr)
	if m == nil {
		return Symbol{}, 0, false
	}
	v := m.Vaddr(addr)
	c, err := s.codeNear(m, v)
	if err != nil {
		return Symbol{}, 0, false
	}
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
	c, err := s.codeNear(sym.Module, sym.Module.Vaddr(sym.Addr))
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
	v := m.Vaddr(sym.Addr)
	c, err := s.codeNear(m, v)
	if err != nil {
		return 0, 0, 0, err
	}
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
	if !c.frames && !s.Named(m) {
		// What lies between may be a function that nobody told of.
		nextStart, prevEnd = min(nextStart, end), v
	}
	return m.Addr(end), m.Addr(nextStart), m.Addr(prevEnd), nil
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
		d, err := s.derivedFrom(m, name)
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
	d, err := s.derivedFrom(sym.Module, sym.Name)
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
func (s *Space) Named(m *Module) bool {
	return m.Image != nil && (m.Image.HasSymtab() || s.debugTable(m).image != nil)
}

// Unnamed gives the range of code around an address that .eh_frame knows and that
// no function symbol begins: in a stripped module, a static function, or a piece
// that the compiler moved out of one.
func (s *Space) Unnamed(addr uint64) (start, end uint64, ok bool) {
	m := s.ModuleAt(addr)
	if m == nil {
		return 0, 0, false
	}
	v := m.Vaddr(addr)
	c, err := s.codeNear(m, v)
	if err != nil {
		return 0, 0, false
	}
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
