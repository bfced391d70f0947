package elfsym

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// TestMentions: searching for a name where it stands in the string table finds the entries
// that reading all of them finds, also of a name that is a part or the end of another.
func TestMentions(t *testing.T) {
	t.Parallel()
	path := testtarget.Build(t, testtarget.Spec{Sources: []string{"seed.cc"}, Flags: []string{"-O1", "-static"}})
	for _, loaded := range []bool{false, true} {
		im, all := openImage(t, path), openImage(t, path)
		if loaded {
			im.table(Symtab)
		}
		describe := func(s *Sym) string {
			return fmt.Sprintf("%d %s %s %s %v %x %x %v %v %v %v", s.Index, s.Name, s.File, s.Version, s.Hidden, s.Value, s.Size, s.Type, s.Bind, s.Vis, s.Section)
		}
		var entries, names []string
		err := all.Symbols(Symtab, func(s *Sym) bool {
			entries, names = append(entries, describe(s)), append(names, string(s.Name))
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		searched := 0
		for i := 0; i < len(names) && searched < 200; i += 7 {
			if names[i] == "" {
				continue
			}
			needles := [][]byte{[]byte(names[i])}
			if i%2 == 0 {
				needles = append(needles, []byte(names[(i+11)%len(names)]+"."), []byte("no such name"))
			}
			list, ok, err := im.mentions(Symtab, needles)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				continue // too many
			}
			searched++
			var got, want []string
			for j := range list {
				got = append(got, describe(&list[j]))
			}
			for j, name := range names {
				if slices.ContainsFunc(needles, func(n []byte) bool { return bytes.Contains([]byte(name), n) }) {
					want = append(want, entries[j])
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%q: found\n%s\nwant\n%s", needles, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
		if searched < 100 {
			t.Errorf("only %d names could be searched for", searched)
		}
		if list, ok, err := im.mentions(Symtab, [][]byte{[]byte("no such name at all")}); len(list) > 0 || !ok || err != nil {
			t.Errorf("what is not there: %v, %v, %v", list, ok, err)
		}
		if _, ok, err := im.mentions(Symtab, [][]byte{[]byte("a")}); ok || err != nil {
			t.Errorf("what is nearly everywhere: %v, %v", ok, err)
		}
	}
}

// TestPlaces searches string tables that are longer than a piece, with names that lie
// across the borders, that are longer than pieces, and that do not end.
func TestPlaces(t *testing.T) {
	t.Parallel()
	for _, piece := range []int{48, 96, 240} {
		for shift := range 100 {
			text := "\x00" + strings.Repeat("x", shift) + "\x00curtails\x00" + strings.Repeat("y", 3*piece) + "curtail\x00" +
				strings.Repeat("z", shift) + "tail"
			x := &tableSource{strings: uint64(len(text)), buf: make([]byte, piece), im: &Image{r: strings.NewReader(text), size: uint64(len(text))}}
			got, ok, err := x.places([][]byte{[]byte("tail"), []byte("rtail")})
			if !ok || err != nil {
				t.Fatal(ok, err)
			}
			// A range begins behind a zero, and ends at the last mention in it.
			var want []nameRange
			at := 0
			for name := range strings.SplitSeq(text, "\x00") {
				if i := strings.LastIndex(name, "tail"); i >= 0 {
					want = append(want, nameRange{uint64(at), uint64(at + i)})
				}
				at += len(name) + 1
			}
			if !slices.Equal(got, want) {
				t.Fatalf("pieces of %d, shift %d: %v, want %v", piece, shift, got, want)
			}
			for _, r := range got {
				name, ok, err := x.name(r.first, 1000)
				if want, _, _ := strings.Cut(text[r.first:], "\x00"); string(name) != want || !ok || err != nil {
					t.Fatalf("name at %d: %q, want %q", r.first, name, want)
				}
				if name, ok, _ := x.name(r.first, 3); len(name) != 3 || ok {
					t.Fatalf("a name that is too long: %q, %v", name, ok)
				}
			}
		}
	}
}

// TestFileAbove: the file symbol may be pieces away.
func TestFileAbove(t *testing.T) {
	t.Parallel()
	const text = "\x00one.c\x00two.c\x00"
	syms := make([]byte, 40*symSize)
	file := func(i int, name string) {
		binary.LittleEndian.PutUint32(syms[i*symSize:], uint32(strings.Index(text, name)))
		syms[i*symSize+4] = 4 // STT_FILE
	}
	file(3, "one.c")
	file(17, "two.c")
	both := string(syms) + text
	x := &tableSource{entries: uint64(len(syms)), strings: uint64(len(text)), buf: make([]byte, 4*symSize), strOff: uint64(len(syms)),
		im: &Image{r: strings.NewReader(both), size: uint64(len(both))}}
	for i := range uint32(40) {
		want := ""
		if i > 3 {
			want = "one.c"
		}
		if i > 17 {
			want = "two.c"
		}
		if got, err := x.fileAbove(i); string(got) != want || err != nil {
			t.Errorf("%d: %q, want %q, %v", i, got, want, err)
		}
	}
	var seen []uint32
	x.each(func(i uint32, _ []byte) bool { seen = append(seen, i); return i < 30 })
	if len(seen) != 30 || seen[0] != 1 || seen[29] != 30 {
		t.Errorf("visited %v", seen)
	}
}
