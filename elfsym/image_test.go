package elfsym

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestOracle compares every table of real files with readelf.
func TestOracle(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"p.c": mainC + aC + "\n#undef helper\n#define helper helper2\n" + bC})
	run(t, dir, "gcc -g -o p p.c")
	libc := ""
	for _, path := range []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/usr/lib/libc.so.6"} {
		if _, err := os.Stat(path); err == nil && libc == "" {
			libc = path
		}
	}
	for _, path := range []string{filepath.Join(dir, "p"), libc} {
		im := openImage(t, path)
		for _, table := range []Table{Symtab, Dynsym} {
			var got []string
			if err := im.Symbols(table, func(s *Sym) bool {
				if s.Type != elf.STT_SECTION {
					got = append(got, fmt.Sprintf("%d %016x %d %s", s.Index, s.Value, s.Size, s.Name))
				}
				return true
			}); err != nil {
				t.Fatal(err)
			}
			flag := map[Table]string{Symtab: "-sW", Dynsym: "--dyn-syms -W"}[table]
			var want []string
			in := false
			for line := range strings.Lines(run(t, "/", "readelf "+flag+" "+path)) {
				if strings.HasPrefix(line, "Symbol table") {
					in = strings.Contains(line, "'"+table.String()+"'")
				}
				f := strings.Fields(line)
				if !in || len(f) < 7 || !strings.HasSuffix(f[0], ":") || f[0] == "Num:" || f[0] == "0:" || f[3] == "SECTION" {
					continue
				}
				size := f[2]
				if n, ok := strings.CutPrefix(size, "0x"); ok {
					var v uint64
					fmt.Sscanf(n, "%x", &v)
					size = fmt.Sprint(v)
				}
				name := ""
				if len(f) > 7 {
					name, _, _ = strings.Cut(f[7], "@")
				}
				want = append(want, fmt.Sprintf("%s %s %s %s", strings.TrimSuffix(f[0], ":"), f[1], size, name))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s %v: %d symbols, readelf has %d", path, table, len(got), len(want))
				for i := range min(len(got), len(want)) {
					if got[i] != want[i] {
						t.Errorf("%q, want %q", got[i], want[i])
						break
					}
				}
			}
		}
		relocs := 0
		if err := im.Relocs(func(r Reloc) bool {
			relocs++
			_, err := im.DynSym(r.Sym)
			return err == nil
		}); err != nil {
			t.Error(err)
		}
		if want := strings.Count(run(t, "/", "readelf -rW "+path), "R_X86_64_"); relocs != want {
			t.Errorf("%s: %d relocations, readelf has %d", path, relocs, want)
		}
	}
}

// TestRelr: packed relative relocations name the words that hold addresses.
func TestRelr(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"r.c": `
static int a, b; int f(void); int g(void) { return 1; }
void *table[70] = {&a, &b, 0, g, [10 ... 60] = &a, [69] = &b};
int *one = &b;`})
	build := "gcc -shared -fPIC -o libr.so r.c"
	run(t, dir, build)
	want := map[uint64]bool{}
	if err := openImage(t, filepath.Join(dir, "libr.so")).Relocs(func(r Reloc) bool {
		if r.Type == elf.R_X86_64_RELATIVE {
			want[uint64(r.Addend)] = true
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	out := run(t, dir, build+" -Wl,-z,pack-relative-relocs")
	if strings.Contains(out, "ignored") {
		t.Skipf("the linker has no packed relocations: %s", out)
	}
	im := openImage(t, filepath.Join(dir, "libr.so"))
	n := 0
	got := map[uint64]bool{}
	if err := im.RelativeWords(func(vaddr uint64) bool {
		var b [8]byte
		if err := im.ReadVaddr(b[:], vaddr); err != nil {
			t.Fatal(err)
		}
		// The word holds a link-time address, of something in the file.
		w := binary.LittleEndian.Uint64(b[:])
		if im.segment(w) == nil {
			t.Errorf("the word at %#x is %#x, which is no address", vaddr, w)
		}
		got[w] = true
		n++
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if n < 55 || len(got) < 3 {
		t.Errorf("%d words, %d values", n, len(got))
	}
	m := regexpCount(run(t, dir, "readelf -rW libr.so"))
	if m != 0 && m != n {
		t.Errorf("%d words, readelf has %d", n, m)
	}
	stopped := 0
	if err := im.RelativeWords(func(uint64) bool { stopped++; return stopped < 2 }); err != nil || stopped != 2 {
		t.Errorf("does not stop: %d, %v", stopped, err)
	}
}

// regexpCount reads the number of packed relocations out of readelf's text
// "contains N entries: M offsets" (0: this readelf does not say).
func regexpCount(out string) int {
	var entries, offsets int
	for line := range strings.Lines(out) {
		if i := strings.Index(line, " contains "); i >= 0 && strings.Contains(line, ".relr.dyn") {
			fmt.Sscanf(line[i:], " contains %d entry which relocates %d locations", &entries, &offsets)
			fmt.Sscanf(line[i:], " contains %d entries which relocate %d locations", &entries, &offsets)
		}
	}
	return offsets
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"p.c": "int main(void) { return 0; }"})
	run(t, dir, "gcc -g -o p p.c")
	good, err := os.ReadFile(filepath.Join(dir, "p"))
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, c := range map[string]struct {
		data []byte
		code string
	}{
		"empty":         {nil, "not-elf"},
		"text":          {[]byte("#!/bin/sh\n"), "not-elf"},
		"cut header":    {good[:40], "damaged-elf"},
		"cut programs":  {good[:100], "damaged-elf"},
		"32 bit":        {change(func(b []byte) []byte { b[4] = 1; return b }), "not-64-bit"},
		"big endian":    {change(func(b []byte) []byte { b[5] = 2; return b }), "wrong-machine"},
		"aarch64":       {change(func(b []byte) []byte { b[18] = 183; return b }), "wrong-machine"},
		"version":       {change(func(b []byte) []byte { b[6] = 9; return b }), "damaged-elf"},
		"entry size":    {change(func(b []byte) []byte { b[54] = 55; return b }), "damaged-elf"},
		"many programs": {change(func(b []byte) []byte { b[56], b[57] = 0xff, 0xff; return b }), "damaged-elf"},
	} {
		im, err := NewImage(bytes.NewReader(c.data), int64(len(c.data)))
		if im != nil {
			t.Errorf("%s: an image", name)
		}
		wantCode(t, err, c.code)
	}
	// A file that is cut behind its segments has no section headers any more.
	im, err := NewImage(bytes.NewReader(good[:len(good)-100]), int64(len(good)-100))
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, im.Symbols(Symtab, func(*Sym) bool { return true }), "damaged-elf")
	wantCode(t, im.SectionsErr(), "damaged-elf")
	wantCode(t, im.ReadVaddr(make([]byte, 1), 1<<40), "no-such-address")
	_, err = im.DynSym(1 << 30)
	wantCode(t, err, "damaged-elf")
}

// bigTable makes a shared object's .symtab of n functions, by hand.
func bigTable(n int) []byte {
	le := binary.LittleEndian
	str := []byte{0}
	syms := make([]byte, symSize)
	for i := range n {
		b := make([]byte, symSize)
		le.PutUint32(b, uint32(len(str)))
		b[4], b[6] = byte(elf.STB_GLOBAL)<<4|byte(elf.STT_FUNC), 1
		le.PutUint64(b[8:], uint64(i%4096))
		le.PutUint64(b[16:], 8)
		syms = append(syms, b...)
		str = append(str, fmt.Sprintf("_ZN5space8functionILi%dEEEvv\x00", i)...)
	}
	out := make([]byte, headerSize+progSize)
	copy(out, elf.ELFMAG)
	out[4], out[5], out[6] = 2, 1, 1
	le.PutUint16(out[16:], uint16(elf.ET_DYN))
	le.PutUint16(out[18:], uint16(elf.EM_X86_64))
	le.PutUint64(out[32:], headerSize)
	le.PutUint16(out[54:], progSize)
	le.PutUint16(out[56:], 1)
	le.PutUint16(out[58:], sectionSize)
	le.PutUint16(out[60:], 4)
	p := out[headerSize:]
	le.PutUint32(p, uint32(elf.PT_LOAD))
	le.PutUint32(p[4:], uint32(elf.PF_R|elf.PF_X))
	le.PutUint64(p[40:], 8192)
	symOff := len(out)
	out = append(out, syms...)
	strOff := len(out)
	out = append(out, str...)
	le.PutUint64(out[40:], uint64(len(out)))
	section := func(typ elf.SectionType, off, size int, link uint32) {
		b := make([]byte, sectionSize)
		le.PutUint32(b[4:], uint32(typ))
		le.PutUint64(b[24:], uint64(off))
		le.PutUint64(b[32:], uint64(size))
		le.PutUint32(b[40:], link)
		le.PutUint64(b[56:], symSize)
		out = append(out, b...)
	}
	section(elf.SHT_NULL, 0, 0, 0)
	section(elf.SHT_PROGBITS, 0, 0, 0)
	section(elf.SHT_SYMTAB, symOff, len(syms), 3)
	section(elf.SHT_STRTAB, strOff, len(str), 0)
	return out
}

// TestLookupAllocations: a scan allocates for what is found, not for what is
// there, however large the table.
func TestLookupAllocations(t *testing.T) {
	perScan := func(n int) float64 {
		data := bigTable(n)
		im, err := NewImage(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		s := &Space{Modules: []*Module{{Name: "big", Image: im, Hi: 8192, debug: &debugInfo{}}}}
		want := []string{fmt.Sprintf("_ZN5space8functionILi%dEEEvv", n-1), "absent"}
		// AllocsPerRun runs it once before, which loads the table.
		return testing.AllocsPerRun(3, func() {
			found, err := s.Lookup(want)
			if err != nil || len(found[want[0]]) != 1 || len(found) != 1 {
				t.Fatalf("%v, %v", found, err)
			}
		})
	}
	small, large := perScan(1000), perScan(200_000)
	if small != large || large > 40 {
		t.Errorf("%v allocations for 1,000 symbols, %v for 200,000", small, large)
	}
	count := 0
	data := bigTable(200_000)
	im, err := NewImage(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(1, func() {
		im.Symbols(Symtab, func(*Sym) bool { count++; return true })
	}); n > 4 || count != 400_000 {
		t.Errorf("Symbols: %v allocations, %d symbols", n, count)
	}
}

// TestOverlappingNames: a table made to be slow is refused.
func TestOverlappingNames(t *testing.T) {
	t.Parallel()
	data := bigTable(100_000)
	le := binary.LittleEndian
	shoff := le.Uint64(data[40:])
	str := le.Uint64(data[shoff+3*sectionSize+24:])
	size := le.Uint64(data[shoff+3*sectionSize+32:])
	for i := range size - 2 {
		data[str+1+i] = 'a'
	}
	im, err := NewImage(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, im.Symbols(Symtab, func(*Sym) bool { return true }), "damaged-elf")
}

func BenchmarkLookup(b *testing.B) {
	data := bigTable(200_000)
	im, err := NewImage(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		b.Fatal(err)
	}
	s := &Space{Modules: []*Module{{Name: "big", Image: im, Hi: 8192, debug: &debugInfo{}}}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Lookup([]string{"absent"}); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzImage walks every exported reader of an image.
func FuzzImage(f *testing.F) {
	dir := files(f, map[string]string{
		"p.c": "int f(int x) { return x; } static int g(void) { return f(1); } int main(void) { return g(); }",
	})
	run(f, dir, "gcc -Os -Wl,-z,max-page-size=4096 -Wl,-z,noseparate-code -o p p.c")
	run(f, dir, "gcc -Os -nostdlib -shared -fPIC -Wl,-z,noseparate-code -Wl,--hash-style=gnu -o s.so p.c")
	for _, name := range []string{"p", "s.so"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add(bigTable(3))
	f.Fuzz(func(t *testing.T, data []byte) {
		im, err := NewImage(bytes.NewReader(data), int64(len(data)))
		if (im == nil) != (err != nil) {
			t.Fatalf("%v with %v", im, err)
		}
		if err != nil {
			return
		}
		walk(im)
		// Without section headers other paths are taken.
		bare, _ := NewImage(bytes.NewReader(data), int64(len(data)))
		bare.shoff = 0
		walk(bare)
		m := &Module{Name: "m", Image: im, Hi: 1 << 47}
		s := &Space{Modules: []*Module{m}}
		m.debug = &debugInfo{}
		s.Lookup([]string{"f", "g"})
		for _, p := range im.Segments() {
			sym := Symbol{Module: m, Name: "f", Addr: p.Vaddr + 8}
			s.Extent(sym)
			s.Aliases(sym)
			s.FuncAt(p.Vaddr + 8)
		}
		s.VTableSlots(imageMemory{im}, map[uint64]bool{0x1000: true, im.Entry(): true})
	})
}

// imageMemory is the memory of a process that has just been started.
type imageMemory struct{ im *Image }

func (m imageMemory) ReadAt(b []byte, addr uint64) error { return m.im.ReadVaddr(b, addr) }

func walk(im *Image) {
	im.Type()
	im.Entry()
	im.BuildID()
	im.Interp()
	im.HasDynamic()
	im.Soname()
	im.Needed()
	im.HasSymtab()
	var b [16]byte
	for _, p := range im.Segments() {
		im.ReadVaddr(b[:], p.Vaddr)
	}
	for _, sec := range im.Sections() {
		im.Section(sec.Name)
		im.SectionData(sec, 1<<16)
	}
	for _, table := range []Table{Symtab, Dynsym} {
		// Before the table is loaded, and, the next time, after.
		for _, needle := range []string{"main", "_", "no such name"} {
			list, _, _ := im.mentions(table, [][]byte{[]byte(needle), []byte("a")})
			for i := range min(len(list), 3) {
				im.symtabEntry(list[i].Index)
			}
		}
		im.Symbols(table, func(s *Sym) bool { s.Defined(); return true })
	}
	im.Relocs(func(r Reloc) bool { im.DynSym(r.Sym); return true })
	im.RelativeWords(func(uint64) bool { return true })
	im.frameRanges()
	(&Space{}).indexCode(&Module{Image: im, debug: &debugInfo{}}, im.Entry()&^0xfff, im.Entry()|0xfff)
}

func FuzzUnpackXZ(f *testing.F) {
	dir := files(f, map[string]string{"x": strings.Repeat("hotpatch ", 100)})
	run(f, dir, "xz -k x")
	data, err := os.ReadFile(filepath.Join(dir, "x.xz"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 1 << 20
		if out, err := unpackXZ(data, limit); (err != nil) && out != nil || len(out) > limit {
			t.Fatalf("%d bytes with %v", len(out), err)
		}
	})
}
