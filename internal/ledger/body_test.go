package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hotpatch/internal/fault"
)

const (
	rootAt  = 0x7e0000000000
	areaLen = 1 << 16
)

var same = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateApproxTime(0)}

// full gives a ledger with something in every field and two patches, without
// and with a transaction that takes the last one out.
func full(t testing.TB) (rest, txn *Ledger) { return stacked(t, 2) }

// stacked is full with another number of patches.
func stacked(t testing.TB, patches uint64) (rest, txn *Ledger) {
	m, l := memory{}, newLedger()
	l.Format = Format
	l.Areas = [2]Area{{rootAt + 0x10000, areaLen}, {rootAt + 0x30000, areaLen}}
	l.Counter = 7
	for id := uint64(1); id <= patches; id++ {
		p := newPatch(id)
		p.Description, p.CVEs = "says “hello” \\ & <twice>", []string{"CVE-2026-1", "CVE-2026-2"}
		p.SHA256, p.BuildID, p.File, p.Tool = strings.Repeat("ab", 32), "0123456789abcdef", "fix.so", "1.0"
		p.Handle, p.AppliedAt = p.Lo+0x4000, time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
		p.Hooks.AfterApply = []uint64{p.Lo + 1, p.Lo + 2}
		p.Hooks.BeforeRevert, p.Hooks.AfterRevert = []uint64{p.Lo + 3}, []uint64{p.Lo + 4}
		var c []Change
		for f := range id * 2 {
			c = append(c, changes(m, id, f, true, true)...)
		}
		edits, err := l.Push(p, c)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range edits {
			m.write(e.Addr, e.New)
		}
	}
	txn, after := l.Clone(), l.Clone()
	edits, err := after.Pop([]uint64{patches})
	if err != nil {
		t.Fatal(err)
	}
	txn.Txn = &Txn{Verb: Revert, Patches: []uint64{patches}, Edits: edits, Started: time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC), After: after}
	return l, txn
}

// put makes l the ledger in force in m.
func put(t testing.TB, m memory, l *Ledger) {
	t.Helper()
	w, err := l.Writes(rootAt)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range w {
		m.write(w.Addr, w.Bytes)
	}
	l.Generation++
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rest, txn := full(t)
	m := memory{}
	m.write(rootAt, NewRoot())
	empty, committed, err := Load(rootAt, m.read)
	if err != nil || committed || len(empty.Patches) != 0 || empty.Generation != 0 {
		t.Fatalf("a new root gives %v, %v, %v", empty, committed, err)
	}
	for i, l := range []*Ledger{rest, txn, rest, rest, txn} {
		l.Generation = uint64(i)
		put(t, m, l)
		got, committed, err := Load(rootAt, m.read)
		if err != nil || committed {
			t.Fatalf("generation %d: %v, committed %v", i, err, committed)
		}
		if diff := cmp.Diff(l, got, same); diff != "" {
			t.Errorf("generation %d:\n%s", i, diff)
		}
	}
	off, b := CommitWord(txn.Generation)
	if off%8 != 0 || len(b) != 8 {
		t.Errorf("the commit word is %d bytes at %d", len(b), off)
	}
	m.write(rootAt+uint64(off), b)
	if _, committed, err := Load(rootAt, m.read); err != nil || !committed {
		t.Errorf("after the commit: committed %v, %v", committed, err)
	}
}

// A writer may be killed after any byte of any of its writes. What is read then
// is the ledger before or the ledger after, never an error or a mixture.
func TestTornWrites(t *testing.T) {
	t.Parallel()
	rest, txn := stacked(t, 1)
	m := make(flat, 0x30000+areaLen) // fresh memory is zero

	type step struct {
		Write
		wantBefore, wantAfter *Ledger
		commitAfter           bool
	}
	nothing := &Ledger{Format: Format}
	steps := []step{{Write{rootAt, NewRoot()}, nothing, nothing, false}}
	add := func(before, l *Ledger, gen uint64) *Ledger {
		l = l.Clone()
		l.Generation = gen
		w, err := l.Writes(rootAt)
		if err != nil {
			t.Fatal(err)
		}
		l.Generation++
		steps = append(steps, step{w[0], before, before, false}, step{w[1], before, l, false})
		return l
	}
	first := add(nothing, rest, 0)
	intent := add(first, txn, 1)
	off, b := CommitWord(intent.Generation)
	steps = append(steps, step{Write{rootAt + uint64(off), b}, intent, intent, true})
	done := add(intent, txn.Txn.After, 2)
	again := add(done, rest, 3)
	add(again, txn, 4)

	committed := false
	for i, s := range steps {
		stride := 1 // every byte of what puts something in force
		if len(s.Bytes) > 100 {
			stride = 7 // and of what does not
			if testing.Short() {
				stride = 61
			}
		}
		for n := 0; n <= len(s.Bytes); n = max(n+1, min(n+stride, len(s.Bytes))) {
			copy(m[s.Addr-rootAt:], s.Bytes[:n])
			got, c, err := Load(rootAt, m.read)
			if err != nil {
				t.Fatalf("step %d, %d of %d bytes: %v", i, n, len(s.Bytes), err)
			}
			before, after := got.Generation == s.wantBefore.Generation, got.Generation == s.wantAfter.Generation
			switch {
			case n == 0 && !before || n == len(s.Bytes) && !after || !before && !after:
				t.Fatalf("step %d, %d of %d bytes: generation %d, want %d or %d", i, n, len(s.Bytes),
					got.Generation, s.wantBefore.Generation, s.wantAfter.Generation)
			case c && got.Generation != intent.Generation:
				t.Fatalf("step %d, %d of %d bytes: generation %d is committed", i, n, len(s.Bytes), got.Generation)
			case s.commitAfter && (n == 0 && c || n == len(s.Bytes) && !c):
				t.Fatalf("step %d, %d of %d bytes: committed %v", i, n, len(s.Bytes), c)
			}
			want := s.wantBefore
			if !before {
				want = s.wantAfter
			}
			if n%13 == 0 || n > len(s.Bytes)-20 {
				if diff := cmp.Diff(want, got, same); diff != "" {
					t.Fatalf("step %d, %d of %d bytes:\n%s", i, n, len(s.Bytes), diff)
				}
			}
		}
		committed = committed || s.commitAfter
	}
	if !committed {
		t.Error("nothing was committed")
	}
}

// flat is memory from rootAt on.
type flat []byte

func (m flat) read(addr uint64, b []byte) error {
	copy(b, m[addr-rootAt:])
	return nil
}

// A torn commit word never commits a transaction that it was not meant for.
func TestTornCommitWord(t *testing.T) {
	t.Parallel()
	for _, g := range []struct{ old, new uint64 }{{0xff, 0x100}, {0x1fe, 0x200}, {0xffff, 0x10001}, {1, 0x0102}, {0x00ff00, 0x010000}} {
		_, a := CommitWord(g.old)
		_, b := CommitWord(g.new)
		for n := range 8 {
			torn := binary.LittleEndian.Uint64(append(bytes.Clone(b[:n]), a[n:]...))
			if torn > g.new {
				t.Errorf("%#x over %#x, cut at %d, gives %#x", g.new, g.old, n, torn)
			}
		}
	}
}

// rebody replaces the body in force by text, with right checksums.
func rebody(m memory, gen uint64, text []byte) {
	at := uint64(rootAt + 0x10000)
	if gen&1 == 1 {
		at = rootAt + 0x30000
	}
	off, h := EncodeHeader(gen, at, text)
	m.write(at, text)
	m.write(rootAt+uint64(off), h)
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	rest, txn := full(t)
	body, err := Encode(rest)
	if err != nil {
		t.Fatal(err)
	}
	txnBody, err := Encode(txn)
	if err != nil {
		t.Fatal(err)
	}
	swap := func(old, new string) func(memory) {
		return func(m memory) {
			if !bytes.Contains(body, []byte(old)) {
				t.Errorf("the body has no %s", old)
			}
			rebody(m, 1, bytes.Replace(body, []byte(old), []byte(new), 1))
		}
	}
	swapTxn := func(old, new string) func(memory) {
		return func(m memory) {
			if !bytes.Contains(txnBody, []byte(old)) {
				t.Errorf("the body has no %s", old)
			}
			rebody(m, 1, bytes.Replace(txnBody, []byte(old), []byte(new), 1))
		}
	}
	poke := func(off uint64, b ...byte) func(memory) {
		return func(m memory) { m.write(rootAt+off, b) }
	}
	header := func(i int, h Header) func(memory) {
		return func(m memory) {
			b := binary.LittleEndian.AppendUint64(nil, h.Addr)
			b = binary.LittleEndian.AppendUint64(b, h.Len)
			b = binary.LittleEndian.AppendUint64(b, h.Generation)
			b = binary.LittleEndian.AppendUint32(b, h.CRC)
			b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
			m.write(rootAt+uint64(headerOffset*(1+i)), b)
		}
	}
	const damage, format = "ledger-damaged", "ledger-format"
	tests := []struct {
		name, code, why string
		spoil           func(memory)
	}{
		{"magic", damage, "begins with", poke(0, 'H')},
		{"format of the root", format, "format is 2", poke(formatOffset, 2)},
		{"stray byte in the root", damage, "nothing should be", poke(4000, 1)},
		{"stray byte after the format", damage, "nothing should be", poke(12, 1)},
		{"commit of the future", damage, "committed", poke(commitOffset, 9)},
		{"kernel address", damage, "header 1", header(1, Header{Addr: 1 << 63, Len: 10, Generation: 3})},
		{"wraps", damage, "header 1", header(1, Header{Addr: userEnd - 5, Len: 10, Generation: 3})},
		{"too long", damage, "header 1", header(1, Header{Addr: rootAt, Len: MaxBody + 1, Generation: 3})},
		{"wrong parity", damage, "header 1", header(1, Header{Addr: rootAt, Len: 10, Generation: 4})},
		{"generation 0", damage, "header 0", header(0, Header{Addr: rootAt, Len: 10, Generation: 0})},
		{"last generation", damage, "header 1", header(1, Header{Addr: rootAt, Len: 10, Generation: 1<<64 - 1})},
		{"unreadable", damage, "cannot be read", header(1, Header{Addr: 0x1000, Len: 10, Generation: 3})},
		{"body byte", damage, "checksum", poke(0x30000+100, 0)},
		{"empty body", damage, "unexpected end", func(m memory) { rebody(m, 1, nil) }},
		{"not json", damage, "invalid", func(m memory) { rebody(m, 1, []byte("{hello}")) }},
		{"two documents", damage, "after", func(m memory) { rebody(m, 1, append(bytes.Clone(body), body...)) }},
		{"format of the body", format, "format is 3", swap(`"format":1`, `"format":3`)},
		{"unknown field", damage, "unknown field", swap(`"format":1`, `"format":1,"future":1`)},
		{"unknown field in a site", damage, "unknown field", swap(`"original":`, `"future":1,"original":`)},
		{"null", damage, "null", swap(`"islands":[`, `"islands":null,"x":[`)},
		{"null body", damage, "null", func(m memory) { rebody(m, 1, []byte("null")) }},
		{"deep", damage, "deeper", func(m memory) { rebody(m, 1, bytes.Repeat([]byte(`{"txn":`), 9000)) }},
		{"no list", damage, "no list", swap(`"islands":[`, `"islands":{},"Islands":{},"islands":3,"x":[`)},
		{"missing lists", damage, "no list", func(m memory) { rebody(m, 1, []byte(`{"format":1}`)) }},
		{"area elsewhere", damage, "its area", swap(fmt.Sprintf(`{"addr":%d`, rootAt+0x30000), fmt.Sprintf(`{"addr":%d`, rootAt+0x40000))},
		{"area small", damage, "its area", swap(fmt.Sprintf(`%d,"len":65536`, rootAt+0x30000), fmt.Sprintf(`%d,"len":16`, rootAt+0x30000))},
		{"areas overlap", damage, "overlap", swap(`"len":65536`, `"len":655360`)},
		{"area odd", damage, "body area", swap(fmt.Sprintf(`{"addr":%d`, rootAt+0x10000), fmt.Sprintf(`{"addr":%d`, rootAt+0x10001))},
		{"same id", damage, "two patches", swap(`"id":2`, `"id":1`)},
		{"id 0", damage, "begin with 1", swap(`"id":1`, `"id":0`)},
		{"negative id", damage, "uint64", swap(`"id":1`, `"id":-1`)},
		{"state", damage, "state", swap(`"state":"active"`, `"state":"asleep"`)},
		{"layer of inert", damage, "not applied", swap(`"state":"active"`, `"state":"inert"`)},
		{"layer of nobody", damage, "not applied", swap(`{"patch":1`, `{"patch":9`)},
		{"layer twice", damage, "out of order", swap(`{"patch":1`, `{"patch":2`)},
		{"escape in a name", damage, "printable", swap(`"name":"p1"`, `"name":"p\u001b[2J"`)},
		{"long name", damage, "name", swap(`"name":"p1"`, `"name":"`+strings.Repeat("x", 257)+`"`)},
		{"line feed in a CVE", damage, "CVE", swap(`"CVE-2026-1"`, `"CVE\n"`)},
		{"bidi in a description", damage, "printable", swap(`"description":"`, `"description":"\u202e`)},
		{"escape in a module", damage, "bad name", swap(`"name":"f0","module":"target"`, `"name":"f0","module":"\u0007"`)},
		{"checksum", damage, "hexadecimal", swap(`"sha256":"ab`, `"sha256":"`)},
		{"build-id", damage, "hexadecimal", swap(`"buildId":"0123456789abcdef"`, `"buildId":"xyz"`)},
		{"hook outside", damage, "hook", swap(`"beforeApply":[`, `"beforeApply":[4096,`)},
		{"new function outside", damage, "replaces", swap(`"new":1`, `"new":2`)},
		{"library range", damage, "its library", swap(`"lo":1`, `"lo":9`)},
		{"island odd", damage, "island", swap(fmt.Sprintf(`"code":%d`, islandAt), fmt.Sprintf(`"code":%d`, islandAt+1))},
		{"island far", damage, "reach", swap(fmt.Sprintf(`"code":%d`, islandAt), fmt.Sprintf(`"code":%d`, islandAt-1<<32))},
		{"island in one page", damage, "shares", swap(fmt.Sprintf(`"code":%d`, islandAt), fmt.Sprintf(`"code":%d`, wordAt))},
		{"island use", damage, "slots", swap(`"used":6`, `"used":-6`)},
		{"slot in no island", damage, "slot", swap(fmt.Sprintf(`"slot":%d`, islandAt+16), fmt.Sprintf(`"slot":%d`, textBase))},
		{"slot twice", damage, "slot", swap(fmt.Sprintf(`"slot":%d`, islandAt+16), fmt.Sprintf(`"slot":%d`, islandAt))},
		{"function twice", damage, "twice", swap(fmt.Sprintf(`"entry":%d`, textBase+64), fmt.Sprintf(`"entry":%d`, textBase))},
		{"function index", damage, "function is 99", swap(`"function":0`, `"function":99`)},
		{"negative index", damage, "function is -1", swap(`"function":0`, `"function":-1`)},
		{"site kind", damage, "kind", swap(`"kind":"entry"`, `"kind":"heap"`)},
		{"site without bytes", damage, "0 bytes", swap(`"kind":"entry","function":0,"original":"`, `"kind":"entry","function":0,"original":"","original":"","x":"`)},
		{"long site", damage, "bytes", swap(`"kind":"entry","function":0,"original":"`, `"kind":"entry","function":0,"original":"AAAAAAAAAAAAAAAAAAAAAAAA`)},
		{"vtable odd", damage, "vtable", swap(fmt.Sprintf(`{"addr":%d`, vtableAt), fmt.Sprintf(`{"addr":%d`, vtableAt+1))},
		{"sites overlap", damage, "another site", swap(fmt.Sprintf(`{"addr":%d,"kind":"entry"`, textBase+64), fmt.Sprintf(`{"addr":%d,"kind":"entry"`, textBase+4))},
		{"sites out of order", damage, "another site", swap(fmt.Sprintf(`{"addr":%d,"kind":"entry"`, textBase+64), fmt.Sprintf(`{"addr":%d,"kind":"entry"`, 4096))},
		{"txn verb", damage, "verb", swapTxn(`"verb":"revert"`, `"verb":"destroy"`)},
		{"txn patch", damage, "ledger to come", swapTxn(`"verb":"revert","patches":[2]`, `"verb":"revert","patches":[3]`)},
		{"txn without edits", damage, "differences", swapTxn(`"edits":[`, `"edits":[],"Edits":[],"edits":[],"x":[`)},
		{"txn other edit", damage, "differences", swapTxn(`"kind":"entry","old":"`, `"kind":"pad","old":"`)},
		{"txn without end", damage, "missing", swapTxn(`"after":{`, `"x":{`)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := memory{}
			l := rest.Clone()
			m.write(rootAt, NewRoot())
			put(t, m, l)
			tt.spoil(m)
			read := func(addr uint64, b []byte) error {
				if addr < rootAt || addr+uint64(len(b)) > rootAt+0x30000+areaLen {
					return io.ErrUnexpectedEOF
				}
				return m.read(addr, b)
			}
			got, _, err := Load(rootAt, read)
			if !errors.Is(err, &fault.Error{Code: tt.code}) || got != nil {
				t.Fatalf("got %v and %v, want code %s", got, err, tt.code)
			}
			if !strings.Contains(err.Error(), tt.why) && !strings.Contains(err.Error(), "unknown field \"x\"") {
				t.Errorf("the message is %q, want %q in it", err, tt.why)
			}
		})
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "libc.so.6", "größe", "a b", "a\x1b[2J", "\xff\xfe", "x\u202ey", strings.Repeat("\x00", 1<<16), strings.Repeat("é", 1<<16), strings.Repeat("\u202e", 1<<15)} {
		c := Clean(s)
		if !printable(c, maxText) || printable(s, maxText) && c != s || s != "" && c == "" {
			t.Errorf("%.20q gives %.20q of %d bytes", s, c, len(c))
		}
	}
}

// Encode writes nothing that Decode would refuse.
func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	l, _ := full(t)
	l.Patches[0].Name = "two\nlines"
	if _, err := Encode(l); !errors.Is(err, &fault.Error{Code: "ledger-invalid"}) {
		t.Errorf("got %v", err)
	}
	l, _ = full(t)
	l.Areas[1].Len = 100
	_, err := l.Writes(rootAt)
	var e *fault.Error
	if !errors.As(err, &e) || e.Code != "ledger-full" {
		t.Fatalf("got %v", err)
	}
	l.Areas[l.NextArea()].Len = uint64(e.Details.(int)) + 100
	if _, err := l.Writes(rootAt); err != nil {
		t.Errorf("with the area that was asked for: %v", err)
	}
}

// A reader that meets a writer reads again.
func TestLoadWhileWriting(t *testing.T) {
	t.Parallel()
	rest, txn := full(t)
	m := memory{}
	m.write(rootAt, NewRoot())
	put(t, m, rest)
	reads := 0
	got, _, err := Load(rootAt, func(addr uint64, b []byte) error {
		if reads++; reads == 2 { // between the root page and the body
			for gen := uint64(1); gen <= 2; gen++ {
				l := txn.Clone()
				l.Generation = gen
				put(t, m, l)
			}
		}
		return m.read(addr, b)
	})
	if err != nil || got.Generation != 3 {
		t.Errorf("got %v, %v", got, err)
	}
}

// A hostile body of a few megabytes must not cost hundreds: lists of elements
// that are tiny as text and large in memory are refused.
func TestDecodeMemory(t *testing.T) {
	for _, list := range []string{
		`{"format":1,"patches":[{}` + strings.Repeat(`,{}`, 1<<20) + `]}`,
		`{"format":1,"patches":[[]` + strings.Repeat(`,[]`, 1<<20) + `]}`,
		`{"format":1,"sites":[{"layers":[{}` + strings.Repeat(`,{}`, 1<<20) + `]}]}`,
		`{"format":1,"txn":{"edits":[{}` + strings.Repeat(`,{}`, 1<<20) + `]}}`,
		strings.Repeat(`[`, 3<<20),
	} {
		m := make([]byte, 0x30000+len(list))
		copy(m, NewRoot())
		off, h := EncodeHeader(1, rootAt+0x30000, []byte(list))
		copy(m[off:], h)
		copy(m[0x30000:], list)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := Decode(m[:RootSize], func(addr uint64, b []byte) error { copy(b, m[addr-rootAt:]); return nil })
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%.40s… was accepted", list)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 24*uint64(len(list)) {
			t.Errorf("%.40s… of %d bytes costs %d", list, len(list), used)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	l := &Ledger{Areas: [2]Area{{rootAt + 0x10000, MaxBody}, {rootAt + 0x10000 + MaxBody, MaxBody}}}
	p := newPatch(1)
	p.Hi += 1 << 20
	var c []Change
	for i := range uint64(10000) {
		at := textBase + 64*i
		name := fmt.Sprintf("_ZN8database9StorageIO%dwrite_pageEmmPKvRKNS_7OptionsE", i)
		if i%256 == 0 {
			l.Islands = append(l.Islands, Island{Module: "target", Code: islandAt - 16*pageSize*(i/256+1), Data: islandAt - pageSize*(2*i/16+1)&^(pageSize-1)})
		}
		is := l.Islands[len(l.Islands)-1]
		l.Functions = append(l.Functions, Function{Name: name, Module: "target", Entry: at, Slot: is.Code + i%256*16, Size: 64})
		p.Replaced = append(p.Replaced, Replaced{name, "target", at, p.Lo + 16*i, "entry"})
		c = append(c, Change{at, Entry, int(i), []byte("12345"), []byte("54321")},
			Change{is.Data + i%256*8, SlotWord, int(i), word(at), word(p.Lo + 16*i)})
	}
	after := l.Clone()
	edits, err := after.Push(p, c)
	if err != nil {
		b.Fatal(err)
	}
	l.Txn = &Txn{Verb: Apply, Patches: []uint64{1}, Edits: edits, After: after}
	w, err := l.Writes(rootAt)
	if err != nil {
		b.Fatal(err)
	}
	page := NewRoot()
	copy(page[w[1].Addr-rootAt:], w[1].Bytes)
	b.SetBytes(int64(len(w[0].Bytes)))
	for b.Loop() {
		if _, _, err := Decode(page, func(_ uint64, body []byte) error { copy(body, w[0].Bytes); return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
