package runpre

import (
	"maps"
	"slices"
	"strings"
)

// Code of a few bytes may be anybody's. But linkers put the code of one object into one
// piece, in its order: so code that is like a function's, and stands where the function
// must be by its neighbours, is the function's. This holds by sort of section (.text, .text.unlikely,
// ...), not for inline functions, which may come from another object, and is only
// used where what is placed already confirms it.

// most padding that is expected between two functions.
const gapBytes = 64

// textClasses are the sections of code that GNU ld's and lld's default scripts
// gather one after the other.
var textClasses = []string{".text.unlikely", ".text.exit", ".text.startup", ".text.hot", ".text.split", ".text.unknown", ".text"}

// lines gives the functions of the object by sort of section, in order.
func (m *matcher) makeLines() {
	byClass := make(map[string][]*function)
	for _, f := range m.funcs {
		if f.sec.Group != nil || f.absent || f.err != nil {
			continue
		}
		class := f.sec.Name
		for _, c := range textClasses {
			if class == c || strings.HasPrefix(class, c+".") {
				class = c
				break
			}
		}
		byClass[class] = append(byClass[class], f)
	}
	for _, line := range byClass {
		m.lines = append(m.lines, line)
	}
	// Maps have no order, and what is placed first must not depend on it.
	slices.SortFunc(m.lines, func(a, b []*function) int { return a[0].sec.Index - b[0].sec.Index })
}

// neighbours places functions by what stands next to them; it reports whether
// anything new is known now.
func (m *matcher) neighbours() (progress bool) {
	for _, line := range m.lines {
		if !inOnePiece(line) {
			continue
		}
		for i := 0; i < len(line); i++ {
			if line[i].placed != nil {
				continue
			}
			j := i
			for j < len(line) && line[j].placed == nil {
				j++
			}
			progress = m.fill(line, i, j) || progress
			i = j
		}
	}
	return progress
}

// inOnePiece reports whether what is placed of a line is in its order and lies as close as
// the code of one object does.
func inOnePiece(line []*function) bool {
	var last *function
	room := uint64(0) // for what is not placed since then
	for _, f := range line {
		if f.placed == nil {
			room += f.hi - f.lo + gapBytes
			continue
		}
		if last != nil && (f.placed.addr < last.placed.end || f.placed.addr-last.placed.end > room+gapBytes) {
			return false
		}
		last, room = f, 0
	}
	return last != nil
}

// fill places those of the functions i to j of a line, none of which is placed, whose
// places between the neighbours are certain: there are as many as there are functions
// that may be at them, and each may be where the order says.
func (m *matcher) fill(line []*function, i, j int) (progress bool) {
	const most = 200 // more without a place between two that have one is no gap
	if j-i > most {
		return false
	}
	size := uint64(gapBytes)
	for _, f := range line[i:j] {
		size += f.hi - f.lo + gapBytes
	}
	var lo, hi uint64
	if i > 0 {
		lo = line[i-1].placed.end
		hi = lo + size
	}
	if j < len(line) {
		hi = line[j].placed.addr
		if i == 0 {
			lo = hi - min(size, hi)
		}
	}
	places := make([][]*solution, j-i)
	for k, f := range line[i:j] {
		places[k] = m.within(f, lo, hi)
	}
	for _, rivals := range rivalry(places) {
		chosen := inOrder(places, rivals)
		if chosen == nil {
			continue
		}
		for n, k := range rivals {
			f, s := line[i+k], chosen[n]
			if _, told := m.known[factKey{f.key(), atAddr}]; told {
				continue
			}
			f.many, f.placed = false, s
			m.learn(factKey{f.key(), atAddr}, s.addr)
			m.take(s)
			progress = true
		}
	}
	return progress
}

// rivalry groups the functions that have places by whether those overlap, directly or by
// way of others. Groups and their members ascend.
func rivalry(places [][]*solution) (groups [][]int) {
	for k := range places {
		if len(places[k]) == 0 {
			continue
		}
		mine, rest := []int{k}, groups[:0:0]
		for _, g := range groups {
			if slices.ContainsFunc(g, func(n int) bool { return overlap(places[k], places[n]) }) {
				mine = append(mine, g...)
			} else {
				rest = append(rest, g)
			}
		}
		slices.Sort(mine)
		groups = append(rest, mine)
	}
	return groups
}

// inOrder gives each of some functions, which are rivals, its place, if there are as many
// places as functions. Every place is one function's of the line, and that function is among
// those that may be there: so then all of them are there, in their order.
func inOrder(places [][]*solution, rivals []int) []*solution {
	at := make(map[uint64]uint64) // starts and ends
	for _, k := range rivals {
		for _, s := range places[k] {
			at[s.addr] = max(at[s.addr], s.end)
		}
	}
	starts := slices.Sorted(maps.Keys(at))
	if len(starts) != len(rivals) {
		return nil
	}
	var chosen []*solution
	for n, k := range rivals {
		if n > 0 && at[starts[n-1]] > starts[n] {
			return nil
		}
		c := slices.IndexFunc(places[k], func(s *solution) bool { return s.addr == starts[n] })
		if c < 0 {
			return nil
		}
		chosen = append(chosen, places[k][c])
	}
	return chosen
}

// within gives the places between two addresses that a function may be at, ascending.
func (m *matcher) within(f *function, lo, hi uint64) (list []*solution) {
	cands := f.cands
	if f.many {
		cands = nil
		from, _ := slices.BinarySearch(m.im.starts, lo)
		for _, at := range m.im.starts[from:] {
			if at >= hi {
				break
			}
			if s, err := m.compare(f, at); err == nil {
				cands = append(cands, s)
			}
		}
	}
	for _, s := range cands {
		if lo <= s.addr && s.end <= hi && m.agrees(s) {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *solution) int {
		if a.addr < b.addr {
			return -1
		}
		return 1
	})
	return list
}

func overlap(a, b []*solution) bool {
	return slices.ContainsFunc(a, func(s *solution) bool {
		return slices.ContainsFunc(b, func(o *solution) bool { return s.addr < o.end && o.addr < s.end })
	})
}
