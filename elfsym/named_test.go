package elfsym

import (
	"os"
	"slices"
	"testing"

	"hotpatch/internal/testtarget"
)

// TestNamesInStringTable: looking for a name where it stands in the string table finds
// the entries that reading all of them finds, also of a name that is the end of another.
func TestNamesInStringTable(t *testing.T) {
	f, err := os.Open(testtarget.Build(t, testtarget.Spec{Sources: []string{"seed.cc"}, Flags: []string{"-O1", "-static"}}))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := NewImage(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string][]uint32)
	files := make(map[uint32]string)
	err = im.Symbols(Symtab, func(s *Sym) bool {
		byName[string(s.Name)] = append(byName[string(s.Name)], s.Index)
		files[s.Index] = string(s.File)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	st, looked := im.table(Symtab), 0
	for name, want := range byName {
		if looked == 300 {
			break
		}
		var got []uint32
		ok := st.named([]string{name}, func(s *Sym) bool {
			if string(s.Name) != name || string(s.File) != files[s.Index] {
				t.Errorf("%q: entry %d is %q of %q, want the file %q", name, s.Index, s.Name, s.File, files[s.Index])
			}
			got = append(got, s.Index)
			return true
		})
		if !ok {
			continue // too many places, or no name
		}
		looked++
		if !slices.Equal(got, want) {
			t.Errorf("%q: found %v, want %v", name, got, want)
		}
	}
	if looked < 100 {
		t.Errorf("only %d of %d names could be looked for", looked, len(byName))
	}
	if !st.named([]string{"no such name at all"}, func(*Sym) bool { t.Error("found what is not there"); return true }) {
		t.Error("a name that stands nowhere was not decided")
	}

	// "tail" stands in the table as the end of another name only.
	table := &symtab{syms: make([]byte, 3*symSize), str: []byte("\x00curtail\x00curtails\x00")}
	table.syms[symSize] = 1   // curtail
	table.syms[2*symSize] = 4 // tail
	var got []uint32
	if !table.named([]string{"tail"}, func(s *Sym) bool { got = append(got, s.Index); return true }) || !slices.Equal(got, []uint32{2}) {
		t.Errorf("the end of a name: found %v, want [2]", got)
	}
}
