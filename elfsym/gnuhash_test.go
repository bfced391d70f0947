package elfsym

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestExported compares the hash table of libraries with their symbol tables.
func TestExported(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{
		"e.c": "int used(void); int one(void) { return used(); } int two(void) { return 2; } static int three(void) { return 3; }" +
			"int (*keep)(void) = three; __attribute__((visibility(\"hidden\"))) int four(void) { return 4; }",
		"none.c": "int used(void); int main(void) { return 0; }",
		"p.cc":   "#include <string>\n" + ready + "int main() { std::string s = \"x\"; ready(); }",
	})
	run(t, dir, "gcc -O1 -fPIC -shared -Wl,--hash-style=gnu -o libe.so e.c")
	run(t, dir, "gcc -O1 -fPIC -shared -Wl,--hash-style=sysv -o libold.so e.c")
	run(t, dir, "gcc -O1 -o none none.c")
	run(t, dir, "g++ -O1 -o p p.cc")
	list := []string{filepath.Join(dir, "libe.so"), filepath.Join(dir, "none")}
	for _, m := range liveSpace(t, dir, "./p").Modules {
		if m.Kind == Library {
			list = append(list, m.Path)
		}
	}
	if len(list) < 5 {
		t.Fatalf("the program has only %v", list)
	}
	type entry struct {
		index   uint32
		version string
		hidden  bool
		value   uint64
	}
	for _, path := range list {
		im, all := openImage(t, path), openImage(t, path)
		g, ok := im.gnuHash()
		if !ok {
			t.Errorf("%s: no hash table", path)
			continue
		}
		want := map[string][]entry{}
		err := all.Symbols(Dynsym, func(s *Sym) bool {
			e := entry{s.Index, string(s.Version), s.Hidden, s.Value}
			switch {
			case s.Section == elf.SHN_UNDEF:
				if want[string(s.Name)] == nil {
					want[string(s.Name)] = []entry{}
				}
			case s.Bind != elf.STB_LOCAL:
				want[string(s.Name)] = append(want[string(s.Name)], e)
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		want["no such name"] = nil
		if path == list[0] && (len(want["one"]) != 1 || len(want["two"]) != 1 || len(want["used"]) != 0) {
			t.Errorf("%s: %v", path, want)
		}
		for name, entries := range want {
			got := []entry{}
			found, err := im.exported(g, name)
			if err != nil {
				t.Fatalf("%s: %s: %v", path, name, err)
			}
			for _, s := range found {
				if string(s.Name) != name {
					t.Errorf("%s: %s: %s", path, name, s.Name)
				}
				got = append(got, entry{s.Index, string(s.Version), s.Hidden, s.Value})
			}
			if !slices.Equal(got, entries) {
				t.Errorf("%s: %s: %v, want %v", path, name, got, entries)
			}
		}
		if im.tables[Dynsym] != nil || im.dyn.str != nil {
			t.Errorf("%s: its tables were loaded", path)
		}
	}
	if _, ok := openImage(t, filepath.Join(dir, "libold.so")).gnuHash(); ok {
		t.Error("a hash table of the other kind was taken")
	}
}

// TestExports asks a process whose libraries have both kinds of hash tables.
func TestExports(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{
		"a.c": "int both(void) { return 1; } int a(void) { return 2; } static int inner(void) { return 3; } int (*keep)(void) = inner;",
		"b.c": "int both(void) { return 1; } int b(void) { return 2; }",
		"p.c": "int a(void), b(void);\n" + ready + "int main(void) { a(); b(); ready(); }",
	})
	run(t, dir, "gcc -O1 -fPIC -shared -Wl,--hash-style=gnu -o liba.so a.c")
	run(t, dir, "gcc -O1 -fPIC -shared -Wl,--hash-style=sysv -o libb.so b.c")
	run(t, dir, "gcc -o p p.c ./liba.so ./libb.so -Wl,-rpath,.")
	for _, stripped := range []bool{false, true} {
		if stripped {
			run(t, dir, "strip liba.so libb.so")
		}
		s := liveSpace(t, dir, "./p")
		names := []string{"both", "a", "b", "inner", "main", "no such name"}
		found, err := s.Exports(names, func(m *Module) bool { return m.Kind == Library })
		if err != nil {
			t.Fatal(err)
		}
		where := func(found map[string][]Symbol) string {
			text := ""
			for _, n := range names {
				text += n + ":"
				for _, sym := range found[n] {
					text += " " + sym.Module.Name
				}
				text += "; "
			}
			return text
		}
		want := "both: liba.so libb.so; a: liba.so; b: libb.so; inner:; main:; no such name:; "
		swapped := "both: libb.so liba.so; a: liba.so; b: libb.so; inner:; main:; no such name:; "
		if got := where(found); got != want && got != swapped {
			t.Errorf("stripped %v: %s", stripped, got)
		}
		// Lookup finds the same, and what is static as long as there is a symbol table.
		found, err = s.Lookup(names[:4])
		if err != nil {
			t.Fatal(err)
		}
		if inner := len(found["inner"]); len(found["both"]) != 2 || len(found["a"]) != 1 || len(found["b"]) != 1 || (inner == 1) == stripped {
			t.Errorf("stripped %v: Lookup: %s", stripped, where(found))
		}
	}
}

// TestDamagedHash: a hash table that leads nowhere is a fault, and none that has no end is
// followed for ever.
func TestDamagedHash(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"e.c": "int one(void) { return 1; } int two(void) { return 2; }"})
	run(t, dir, "gcc -O1 -fPIC -shared -Wl,--hash-style=gnu -o libe.so e.c")
	good, err := os.ReadFile(filepath.Join(dir, "libe.so"))
	if err != nil {
		t.Fatal(err)
	}
	whole := openImage(t, filepath.Join(dir, "libe.so"))
	g, ok := whole.gnuHash()
	if !ok {
		t.Fatal("no hash table")
	}
	at := func(vaddr uint64) uint64 {
		off, err := whole.tableAt(vaddr, 4)
		if err != nil {
			t.Fatal(err)
		}
		return off
	}
	le := binary.LittleEndian
	for _, c := range []struct {
		name   string
		damage func(b []byte)
		usable bool
	}{
		{"no buckets", func(b []byte) { le.PutUint32(b[at(g.filter-16):], 0) }, false},
		{"an odd filter", func(b []byte) { le.PutUint32(b[at(g.filter-8):], 3) }, false},
		{"a shift too far", func(b []byte) { le.PutUint32(b[at(g.filter-4):], 64) }, false},
		{"a filter beyond the segment", func(b []byte) { le.PutUint32(b[at(g.filter-8):], 1<<30) }, true},
		{"buckets that lead outside", func(b []byte) {
			for i := range uint64(g.buckets) {
				le.PutUint32(b[at(g.bucket)+4*i:], 1<<31)
			}
		}, true},
		{"a chain without an end", func(b []byte) {
			first := firstLoad(whole)
			for off := at(g.chain); off+4 <= first.Off+first.Filesz; off += 4 {
				le.PutUint32(b[off:], hashOf("one")&^1)
			}
		}, true},
	} {
		b := bytes.Clone(good)
		c.damage(b)
		im, err := NewImage(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		g, ok := im.gnuHash()
		if ok != c.usable {
			t.Errorf("%s: usable: %v", c.name, ok)
		}
		if !ok {
			continue
		}
		if list, err := im.exported(g, "one"); err == nil {
			t.Errorf("%s: %s", c.name, fmt.Sprint(list))
		} else {
			wantCode(t, err, "damaged-elf")
		}
	}
}
