package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hotpatch/internal/fault"
)

// The simulated target: functions 64 bytes apart, each with an island slot, and
// a vtable slot for each.
const (
	textBase  = 0x555555554000
	islandAt  = 0x555555000000
	wordAt    = islandAt + pageSize
	vtableAt  = 0x555555600000
	nFunction = 6
)

// memory is the simulated target's memory; bytes that were never written are
// derived from their address.
type memory map[uint64]byte

func (m memory) read(addr uint64, b []byte) error {
	for i := range b {
		a := addr + uint64(i)
		v, ok := m[a]
		if !ok {
			v = byte(a*131 + a>>8)
		}
		b[i] = v
	}
	return nil
}

func (m memory) at(addr uint64, n int) []byte {
	b := make([]byte, n)
	_ = m.read(addr, b)
	return b
}

func (m memory) write(addr uint64, b []byte) {
	for i, v := range b {
		m[addr+uint64(i)] = v
	}
}

// do writes edits as the engine does: compare, write.
func (m memory) do(t *testing.T, edits []Edit) {
	t.Helper()
	for _, e := range edits {
		if got := m.at(e.Addr, len(e.Old)); !bytes.Equal(got, e.Old) {
			t.Fatalf("edit of %s %#x expects % x, and there is % x", e.Kind, e.Addr, e.Old, got)
		}
		if bytes.Equal(e.Old, e.New) {
			t.Fatalf("edit of %s %#x changes nothing", e.Kind, e.Addr)
		}
		m.write(e.Addr, e.New)
	}
}

func newLedger() *Ledger {
	l := &Ledger{Islands: []Island{{Module: "target", BuildID: "c0ffee", Code: islandAt, Data: wordAt, Used: nFunction}}}
	for i := range uint64(nFunction) {
		l.Functions = append(l.Functions, Function{Name: fmt.Sprintf("f%d", i), Module: "target",
			Entry: textBase + 64*i, Slot: islandAt + 16*i, Size: 40})
	}
	return l
}

func newPatch(id uint64) Patch {
	lo := 0x7f0000000000 + id<<20
	return Patch{ID: id, Name: fmt.Sprintf("p%d", id), Version: id, State: Loading, Base: lo, Lo: lo, Hi: lo + 0x5000,
		Hooks:    Hooks{BeforeApply: []uint64{lo + 0x1000}},
		Replaced: []Replaced{{Function: "f", Module: "target", Old: textBase, New: lo + 0x1100, Method: "entry"}}}
}

func word(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// changes gives what patch p does to function f: entry and slot word, its
// vtable slot, or both.
func changes(m memory, p, f uint64, entry, vtable bool) []Change {
	var c []Change
	target := 0x7f0000000000 + p<<20 + 0x1000 + 16*f
	if entry {
		at := textBase + 64*f
		jump := append([]byte{0xe9}, word(islandAt + 16*f - at - 5)[:4]...)
		c = append(c, Change{at, Entry, int(f), m.at(at, 5), jump},
			Change{wordAt + 8*f, SlotWord, int(f), m.at(wordAt+8*f, 8), word(target)})
	}
	if vtable {
		at := vtableAt + 24*f
		c = append(c, Change{at, VTable, int(f), m.at(at, 8), word(target)})
	}
	return c
}

func agree(t *testing.T, m memory, l *Ledger) {
	t.Helper()
	n := 0
	for addr, want := range l.Expected() {
		n++
		if got := m.at(addr, len(want)); !bytes.Equal(got, want) {
			t.Fatalf("memory at %#x is % x, the ledger says % x", addr, got, want)
		}
	}
	if n != len(l.Sites) {
		t.Fatalf("Expected gives %d of %d sites", n, len(l.Sites))
	}
}

// Any sequence of pushes and pops keeps memory as the ledger says, survives
// encoding, and leaves the original bytes when all patches are out.
func TestStackProperties(t *testing.T) {
	t.Parallel()
	seeds := uint64(300)
	if testing.Short() {
		seeds = 60
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		m, l := memory{}, newLedger()
		var active, inert []uint64
		for range 25 {
			before := maps.Clone(m)
			old := l.Clone()
			var edits []Edit
			var err error
			if len(active) == 0 || len(active) < 8 && r.IntN(2) == 0 {
				var id uint64
				if len(inert) > 0 && r.IntN(3) == 0 {
					id = inert[0]
					inert = inert[1:]
				} else {
					id = l.NextID()
				}
				var c []Change
				for f := range uint64(nFunction) {
					if how := r.IntN(5); how > 1 {
						c = append(c, changes(m, id, f, how != 2, how != 3)...)
					}
				}
				if len(c) == 0 {
					c = changes(m, id, 0, true, true)
				}
				r.Shuffle(len(c), func(i, j int) { c[i], c[j] = c[j], c[i] })
				edits, err = l.Push(newPatch(id), c)
				active = append(active, id)
				for _, f := range c {
					if p, ok := l.Current(l.Functions[f.Function].Entry); !ok || p.ID != id {
						t.Fatalf("seed %d: patch %d was pushed and is not the current one", seed, id)
					}
				}
			} else {
				r.Shuffle(len(active), func(i, j int) { active[i], active[j] = active[j], active[i] })
				n := 1 + r.IntN(len(active))
				out := active[:n]
				edits, err = l.Pop(out)
				inert = append(inert, out...)
				active = slices.Clone(active[n:])
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			m.do(t, edits)
			agree(t, m, l)

			undone := maps.Clone(m)
			undone.do(t, Inverse(edits))
			agree(t, undone, old)
			for a := range undone {
				if got, want := undone.at(a, 1)[0], before.at(a, 1)[0]; got != want {
					t.Fatalf("seed %d: undoing leaves %#x at %#x instead of %#x", seed, got, a, want)
				}
			}

			txn := old.Clone()
			txn.Txn = &Txn{Verb: Apply, Edits: edits, After: l}
			if _, err := Encode(txn); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		if len(active) > 0 {
			edits, err := l.Pop(active)
			if err != nil {
				t.Fatal(err)
			}
			m.do(t, edits)
		}
		if len(l.Sites) != 0 {
			t.Fatalf("seed %d: %d sites are left", seed, len(l.Sites))
		}
		for a, v := range m {
			if want := (memory{}).at(a, 1)[0]; v != want {
				t.Fatalf("seed %d: %#x is left at %#x, the original is %#x", seed, v, a, want)
			}
		}
	}
}

// A jump must never be in force before its destination is.
func TestEditOrder(t *testing.T) {
	t.Parallel()
	m, l := memory{}, newLedger()
	c := append(changes(m, 1, 0, true, true),
		Change{textBase - 16, Pad, 0, m.at(textBase-16, 14), bytes.Repeat([]byte{0xcc}, 14)})
	order := func(edits []Edit) (kinds []SiteKind) {
		for _, e := range edits {
			kinds = append(kinds, e.Kind)
		}
		return kinds
	}
	edits, err := l.Push(newPatch(1), c)
	if err != nil {
		t.Fatal(err)
	}
	want := []SiteKind{SlotWord, Pad, VTable, Entry}
	if diff := cmp.Diff(want, order(edits)); diff != "" {
		t.Errorf("push: %s", diff)
	}
	if edits, err = l.Pop([]uint64{1}); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(want)
	if diff := cmp.Diff(want, order(edits)); diff != "" {
		t.Errorf("pop: %s", diff)
	}
}

// Taking out a lower patch changes nothing in memory; the upper one stays in
// force and uncovers the original when it goes.
func TestPopFromTheMiddle(t *testing.T) {
	t.Parallel()
	m, l := memory{}, newLedger()
	for id := uint64(1); id <= 3; id++ {
		edits, err := l.Push(newPatch(id), changes(m, id, 0, true, false))
		if err != nil {
			t.Fatal(err)
		}
		m.do(t, edits)
		want := 1 // only the slot word
		if id == 1 {
			want = 2
		}
		if len(edits) != want {
			t.Errorf("patch %d gives %d edits, want %d", id, len(edits), want)
		}
	}
	for i, step := range []struct {
		out     uint64
		edits   int
		current uint64
	}{{2, 0, 3}, {3, 1, 1}, {1, 2, 0}} {
		edits, err := l.Pop([]uint64{step.out})
		if err != nil {
			t.Fatal(err)
		}
		m.do(t, edits)
		if len(edits) != step.edits {
			t.Errorf("step %d gives %d edits, want %d", i, len(edits), step.edits)
		}
		p, ok := l.Current(textBase)
		if ok != (step.current != 0) || ok && p.ID != step.current {
			t.Errorf("step %d leaves %v in force, want patch %d", i, p, step.current)
		}
		if got := l.Patch(step.out).State; got != Inert {
			t.Errorf("step %d leaves its patch %s", i, got)
		}
	}
	if p, ok := l.Current(0xdead); ok {
		t.Errorf("an unknown function has %v in force", p)
	}
}

func TestPushAndPopRefuse(t *testing.T) {
	t.Parallel()
	m := memory{}
	base := newLedger()
	if _, err := base.Push(newPatch(1), changes(m, 1, 0, true, true)); err != nil {
		t.Fatal(err)
	}
	push := func(id uint64, c ...Change) func(*Ledger) error {
		return func(l *Ledger) error { _, err := l.Push(newPatch(id), c); return err }
	}
	pop := func(ids ...uint64) func(*Ledger) error {
		return func(l *Ledger) error { _, err := l.Pop(ids); return err }
	}
	five := func(at uint64) Change { return Change{at, Entry, 0, make([]byte, 5), []byte{1, 2, 3, 4, 5}} }
	tests := []struct {
		name, code string
		do         func(*Ledger) error
	}{
		{"active again", "ledger-invalid", push(1, changes(m, 1, 1, true, false)...)},
		{"no id", "ledger-invalid", push(0, changes(m, 1, 1, true, false)...)},
		{"no change", "ledger-invalid", push(2)},
		{"overlap behind", "site-overlap", push(2, five(textBase+4))},
		{"overlap before", "site-overlap", push(2, five(textBase-1))},
		{"overlap in itself", "site-overlap", push(2, five(textBase+100), five(textBase+102))},
		{"twice in itself", "ledger-invalid", push(2, five(textBase), five(textBase))},
		{"other length", "site-mismatch", push(2, Change{textBase, Entry, 0, nil, make([]byte, 14)})},
		{"other kind", "site-mismatch", push(2, Change{textBase, Pad, 0, nil, make([]byte, 5)})},
		{"other function", "site-mismatch", push(2, Change{textBase, Entry, 1, nil, make([]byte, 5)})},
		{"no such function", "ledger-invalid", push(2, Change{textBase + 99, Entry, nFunction, make([]byte, 5), make([]byte, 5)})},
		{"too long", "ledger-invalid", push(2, Change{textBase + 99, Entry, 1, make([]byte, 17), make([]byte, 17)})},
		{"empty", "ledger-invalid", push(2, Change{textBase + 99, Entry, 1, nil, nil})},
		{"kernel address", "ledger-invalid", push(2, Change{0xffffffff81000000, Entry, 1, make([]byte, 5), make([]byte, 5)})},
		{"null page", "ledger-invalid", push(2, Change{0, Entry, 1, make([]byte, 5), make([]byte, 5)})},
		{"slot word elsewhere", "ledger-invalid", push(2, Change{vtableAt + 8, SlotWord, 1, make([]byte, 8), make([]byte, 8)})},
		{"pop unknown", "not-applied", pop(7)},
		{"pop twice", "not-applied", pop(1, 1)},
		{"forget active", "ledger-invalid", func(l *Ledger) error { return l.Forget(1) }},
		{"forget unknown", "ledger-invalid", func(l *Ledger) error { return l.Forget(9) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := base.Clone()
			err := tt.do(l)
			if !errors.Is(err, &fault.Error{Code: tt.code}) {
				t.Errorf("got %v, want code %s", err, tt.code)
			}
			if diff := cmp.Diff(base, l); diff != "" {
				t.Errorf("the ledger was changed:\n%s", diff)
			}
		})
	}
}

func TestForget(t *testing.T) {
	t.Parallel()
	l := newLedger()
	if _, err := l.Push(newPatch(1), changes(memory{}, 1, 0, true, true)); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Pop([]uint64{1}); err != nil {
		t.Fatal(err)
	}
	if err := l.Forget(1); err != nil || l.Patch(1) != nil {
		t.Errorf("Forget gives %v and leaves %v", err, l.Patch(1))
	}
}
