package elfsym

import (
	"bytes"
	"cmp"
	"debug/elf"
	"slices"
	"strings"
)

// derived is what a module has of symbols whose names are made of others: what the
// compiler makes of a function (clones, parts, coroutines), thunks, and vtables. They
// are collected in one scan, since every function that is replaced is asked for them.
type derived struct {
	dotted  []Symbol         // functions with a dot in their names, in the order of the tables
	byName  []int            // indexes of dotted, in the order of the names
	frames  []int            // those of dotted that take the frame of a coroutine of gcc's
	thunks  map[string][]int // encoding of the function -> indexes of list
	list    []Symbol         // thunks
	vtables []Symbol         // in ascending order of address
}

// derivedOf collects them once. Its faults are those of scanAll.
func (s *Space) derivedOf(m *Module) (*derived, error) {
	if m.derived != nil {
		return m.derived, nil
	}
	d := newDerived()
	err := s.scanAll(m, func(t Table, sym *Sym) bool {
		d.add(m, t, sym)
		return true
	})
	if err != nil {
		return nil, err
	}
	d.sort()
	m.derived = d
	return d, nil
}

// derivedFrom collects what is made of one function, by its mangled name, and maybe more.
// Its faults are those of scanAll.
func (s *Space) derivedFrom(m *Module, name string) (*derived, error) {
	found, ok, err := s.mentionsOf(m, []string{name}, own|separate)
	if err != nil {
		return nil, err
	}
	if !ok {
		return s.derivedOf(m)
	}
	d := newDerived()
	for _, list := range [][]mention{found[0].list, found[0].debug} {
		for i := range list {
			d.add(m, list[i].table, &list[i].sym)
		}
	}
	d.sort()
	return d, nil
}

func newDerived() *derived { return &derived{thunks: make(map[string][]int)} }

// add adds a symbol if it is one of those.
func (d *derived) add(m *Module, t Table, sym *Sym) {
	if bytes.HasPrefix(sym.Name, []byte("_ZT")) {
		if isVTable(sym) {
			d.vtables = append(d.vtables, m.symbol(t, sym))
		} else if e, ok := thunkEncoding(sym.Name); ok && sym.Type == elf.STT_FUNC {
			d.thunks[string(e)] = append(d.thunks[string(e)], len(d.list))
			d.list = append(d.list, m.symbol(t, sym))
		}
	}
	if sym.Type == elf.STT_FUNC && bytes.IndexByte(sym.Name, '.') >= 0 {
		if bytes.Contains(sym.Name, []byte(".Frame.")) {
			d.frames = append(d.frames, len(d.dotted))
		}
		d.byName = append(d.byName, len(d.dotted))
		d.dotted = append(d.dotted, m.symbol(t, sym))
	}
}

// sort is to be called when all have been added.
func (d *derived) sort() {
	slices.SortFunc(d.byName, func(a, b int) int {
		return cmp.Or(strings.Compare(d.dotted[a].Name, d.dotted[b].Name), cmp.Compare(a, b))
	})
	slices.SortStableFunc(d.vtables, func(a, b Symbol) int {
		return cmp.Or(cmp.Compare(a.Addr, b.Addr), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Table, b.Table))
	})
	d.vtables = slices.CompactFunc(d.vtables, func(a, b Symbol) bool { return a.Addr == b.Addr && a.Name == b.Name })
}

// behind gives the functions whose names are prefix and something more, as indexes of
// dotted in the order of the tables. The prefix has a dot.
func (d *derived) behind(prefix string) []int {
	first, _ := slices.BinarySearchFunc(d.byName, prefix, func(i int, p string) int { return strings.Compare(d.dotted[i].Name, p) })
	var list []int
	for _, i := range d.byName[first:] {
		if !strings.HasPrefix(d.dotted[i].Name, prefix) {
			break
		}
		if len(d.dotted[i].Name) > len(prefix) {
			list = append(list, i)
		}
	}
	slices.Sort(list)
	return list
}
