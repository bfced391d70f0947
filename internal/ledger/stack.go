package ledger

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"slices"

	"hotpatch/internal/fault"
)

// Change is what a patch wants one place in the target to be.
type Change struct {
	Addr     uint64
	Kind     SiteKind
	Function int    // index into Functions
	Original []byte // what is there before any patch; read only if the site is new
	Bytes    []byte
}

// Push puts a patch on top: its record goes to the end of l.Patches, as Active,
// and each change becomes the top layer of its site. A patch that is in l
// already, Loading or Inert, is taken over with the new record.
//
// It returns the edits that make memory agree, in the order in which they are
// to be written: slot words and padding before what leads to them. Sites whose
// bytes in force stay the same give no edit.
//
// l is unchanged if there is an error: "site-overlap" if two places overlap
// without being the same, "site-mismatch" if a site is known with another kind,
// function or length, "ledger-invalid" for a patch or change that cannot be.
func (l *Ledger) Push(p Patch, changes []Change) ([]Edit, error) {
	if old := l.Patch(p.ID); p.ID == 0 || old != nil && old.State == Active {
		return nil, invalid("apply "+quote(p.Name), "patch %d is applied already", p.ID)
	}
	if len(changes) == 0 {
		return nil, invalid("apply "+quote(p.Name), "it changes no site")
	}
	p.State = Active
	next := l.Clone()
	next.Patches = slices.DeleteFunc(next.Patches, func(q Patch) bool { return q.ID == p.ID })
	next.Patches = append(next.Patches, p)

	index := make(map[uint64]int, len(next.Sites)+len(changes))
	for i := range next.Sites {
		index[next.Sites[i].Addr] = i
	}
	for _, c := range changes {
		i, known := index[c.Addr]
		if !known {
			i = len(next.Sites)
			index[c.Addr] = i
			next.Sites = append(next.Sites, Site{Addr: c.Addr, Kind: c.Kind, Function: c.Function,
				Original: slices.Clone(c.Original)})
		}
		s := &next.Sites[i]
		if s.Kind != c.Kind || s.Function != c.Function || len(s.Original) != len(c.Bytes) {
			return nil, &fault.Error{Kind: fault.Unfit, Code: "site-mismatch",
				What:  "cannot apply " + quote(p.Name),
				Where: fmt.Sprintf("site %#x", c.Addr),
				Why: fmt.Sprintf("it is %d bytes of kind %s of function %d, and the patch wants %d bytes of kind %s of function %d",
					len(s.Original), s.Kind, s.Function, len(c.Bytes), c.Kind, c.Function),
				Hint: "revert the patches of this function first, or use the method that they use"}
		}
		s.Layers = append(s.Layers, Layer{Patch: p.ID, Bytes: slices.Clone(c.Bytes)})
	}
	slices.SortFunc(next.Sites, func(a, b Site) int { return cmp.Compare(a.Addr, b.Addr) })
	if err := next.checkState(); err != nil {
		return nil, err
	}
	edits := Diff(l, next)
	slices.SortStableFunc(edits, func(a, b Edit) int { return rank(a.Kind) - rank(b.Kind) })
	*l = *next
	return edits, nil
}

// Pop takes the layers of patches out, wherever they are in their sites'
// stacks. The patches become Inert, and sites without layers are forgotten.
//
// It returns the edits that make memory agree, in the order in which they are
// to be written: entries before what they lead to. A site whose top layer
// stays gives no edit. l is unchanged if there is an error, which is
// "not-applied" if a patch is not Active.
func (l *Ledger) Pop(ids []uint64) ([]Edit, error) {
	next := l.Clone()
	for _, id := range ids {
		p := next.Patch(id)
		if p == nil || p.State != Active {
			name := fmt.Sprintf("patch %d", id)
			if p != nil {
				name = quote(p.Name)
			}
			return nil, &fault.Error{Kind: fault.Unfit, Code: "not-applied",
				What: "cannot revert " + name, Why: "it is not applied"}
		}
		p.State = Inert
	}
	for i := range next.Sites {
		s := &next.Sites[i]
		s.Layers = slices.DeleteFunc(s.Layers, func(y Layer) bool { return slices.Contains(ids, y.Patch) })
	}
	next.Sites = slices.DeleteFunc(next.Sites, func(s Site) bool { return len(s.Layers) == 0 })
	if err := next.checkState(); err != nil {
		return nil, err
	}
	edits := Diff(l, next)
	slices.SortStableFunc(edits, func(a, b Edit) int { return rank(b.Kind) - rank(a.Kind) })
	*l = *next
	return edits, nil
}

// Forget removes the record of a patch that is not Active: its library was
// unloaded, or never loaded.
func (l *Ledger) Forget(id uint64) error {
	p := l.Patch(id)
	if p == nil || p.State == Active {
		return invalid(fmt.Sprintf("forget patch %d", id), "it is unknown or applied")
	}
	l.Patches = slices.DeleteFunc(slices.Clone(l.Patches), func(q Patch) bool { return q.ID == id })
	return nil
}

// rank orders edits so that no jump is written before its destination.
func rank(k SiteKind) int {
	return slices.Index([]SiteKind{SlotWord, Pad, VTable, Entry}, k)
}

// Diff gives the edits that turn memory that agrees with before into memory
// that agrees with after, in ascending order of addresses. A site that only one
// of them has holds its original bytes in the other. Precondition: both are
// valid.
func Diff(before, after *Ledger) []Edit {
	var edits []Edit
	add := func(s *Site, old, new []byte) {
		if !bytes.Equal(old, new) {
			edits = append(edits, Edit{Addr: s.Addr, Kind: s.Kind, Old: slices.Clone(old), New: slices.Clone(new)})
		}
	}
	a, b := before.Sites, after.Sites
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Addr < b[0].Addr:
			add(&a[0], a[0].InForce(), a[0].Original)
			a = a[1:]
		case len(a) == 0 || b[0].Addr < a[0].Addr:
			add(&b[0], b[0].Original, b[0].InForce())
			b = b[1:]
		default:
			add(&b[0], a[0].InForce(), b[0].InForce())
			a, b = a[1:], b[1:]
		}
	}
	return edits
}

// Inverse gives the edits that undo edits, in the order in which they are to be
// written.
func Inverse(edits []Edit) []Edit {
	inv := make([]Edit, len(edits))
	for i, e := range edits {
		inv[len(edits)-1-i] = Edit{Addr: e.Addr, Kind: e.Kind, Old: e.New, New: e.Old}
	}
	return inv
}

// Expected gives the address of every site and the bytes that memory must have
// there, in ascending order of addresses. While a transaction is open, its
// edits may have been written or not.
func (l *Ledger) Expected() iter.Seq2[uint64, []byte] {
	return func(yield func(uint64, []byte) bool) {
		for i := range l.Sites {
			if !yield(l.Sites[i].Addr, l.Sites[i].InForce()) {
				return
			}
		}
	}
}

// Stack gives the patches that have a layer on any site of the function with
// that entry, in the order in which they were applied. Whoever asks for many
// functions uses Stacks.
func (l *Ledger) Stack(entry uint64) []*Patch { return l.Stacks()(entry) }

// Stacks gives what tells the Stack of any function, as long as l is not changed.
func (l *Ledger) Stacks() func(entry uint64) []*Patch {
	on := make(map[uint64][]*Patch, len(l.Functions))
	at := make(map[uint64]int, len(l.Patches)) // index of a patch
	for i := range l.Patches {
		at[l.Patches[i].ID] = i
	}
	for i := range l.Sites {
		s := &l.Sites[i]
		entry := l.Functions[s.Function].Entry
		for _, y := range s.Layers {
			if k, ok := at[y.Patch]; ok && !slices.Contains(on[entry], &l.Patches[k]) {
				on[entry] = append(on[entry], &l.Patches[k])
			}
		}
	}
	for _, stack := range on {
		slices.SortFunc(stack, func(a, b *Patch) int { return cmp.Compare(at[a.ID], at[b.ID]) })
	}
	return func(entry uint64) []*Patch { return on[entry] }
}

// Current gives the patch in force on the function with that entry: the last
// one applied of those that have a layer on any of its sites.
func (l *Ledger) Current(entry uint64) (*Patch, bool) { return Top(l.Stack(entry)) }

// Top gives the patch in force of a stack.
func Top(stack []*Patch) (*Patch, bool) {
	if len(stack) == 0 {
		return nil, false
	}
	return stack[len(stack)-1], true
}

// SitesIn gives the sites that have a byte in [lo, hi). Precondition: l is valid.
func (l *Ledger) SitesIn(lo, hi uint64) []Site {
	end := func(s *Site) uint64 { return s.Addr + uint64(len(s.Original)) }
	i, _ := slices.BinarySearchFunc(l.Sites, lo, func(s Site, lo uint64) int { // sites do not overlap
		if end(&s) <= lo {
			return -1
		}
		return 1
	})
	j := i
	for j < len(l.Sites) && l.Sites[j].Addr < hi {
		j++
	}
	return l.Sites[i:j]
}

// Clone gives a copy of l whose lists can be changed without changing l. Byte
// strings are shared: they are never changed in place.
func (l *Ledger) Clone() *Ledger {
	c := *l
	c.Patches = slices.Clone(l.Patches)
	c.Islands = slices.Clone(l.Islands)
	c.Functions = slices.Clone(l.Functions)
	c.Sites = slices.Clone(l.Sites)
	for i := range c.Sites {
		c.Sites[i].Layers = slices.Clone(l.Sites[i].Layers)
	}
	return &c
}
