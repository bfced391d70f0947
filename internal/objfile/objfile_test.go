package objfile

import (
	"bytes"
	"debug/dwarf"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/fault"
	"hotpatch/internal/testtarget"
)

// compile compiles testdata/broad.cc.
func compile(t testing.TB, flags string) *Object {
	t.Helper()
	args := strings.Fields(flags)
	testtarget.Need(t, args[0])
	out := filepath.Join(t.TempDir(), "out.o")
	args = append(args, "-c", "testdata/broad.cc", "-o", out)
	if text, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, text)
	}
	o, err := Open(out)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

var builds = []string{
	"g++ -O2 -g -ffunction-sections -fdata-sections", "clang++ -O2 -g -ffunction-sections -fdata-sections", "g++ -O0 -fPIC", "clang++ -O0 -fPIC -gdwarf-4",
	"g++ -O3 -fno-pie -g -gz", "g++ -Os -mcmodel=large -ffunction-sections",
}

// each runs a test on every build, with -short on the first one.
func each(t *testing.T, f func(t *testing.T, o *Object)) {
	t.Parallel()
	for i, flags := range builds {
		t.Run(flags, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && i > 0 {
				t.Skip("-short: one build only")
			}
			f(t, compile(t, flags))
		})
	}
}

// TestAgainstELF compares sections, symbols and relocations with what debug/elf
// finds in the same file.
func TestAgainstELF(t *testing.T) {
	each(t, func(t *testing.T, o *Object) {
		f, err := elf.NewFile(bytes.NewReader(o.Data))
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Sections) != len(o.Sections) || len(o.Sections) < 20 {
			t.Fatalf("%d sections, debug/elf has %d", len(o.Sections), len(f.Sections))
		}
		for i, s := range o.Sections {
			e := f.Sections[i]
			if i > 0 && (s.Name != e.Name || s.Type != e.Type || s.Flags != e.Flags || s.Size != e.FileSize && s.Type != elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED == 0 && s.Align != max(1, e.Addralign) || s.Index != i) {
				t.Errorf("%+v, debug/elf has %+v", s, e.SectionHeader)
			}
		}
		symbols, err := f.Symbols()
		if err != nil {
			t.Fatal(err)
		}
		if len(symbols)+1 != len(o.Symbols) {
			t.Fatalf("%d symbols, debug/elf has %d", len(o.Symbols), len(symbols))
		}
		for i, e := range symbols {
			y := o.Symbols[i+1]
			if y.Name != e.Name || y.Value != e.Value || y.Size != e.Size || y.Bind != elf.ST_BIND(e.Info) || y.Type != elf.ST_TYPE(e.Info) || y.Where != e.Section {
				t.Errorf("%+v, debug/elf has %+v", y, e)
			}
			if y.Section != nil && y.Section.Index != int(e.Section) {
				t.Errorf("%s is in section %d, debug/elf has %d", y.Name, y.Section.Index, e.Section)
			}
			if want := "broad.cc"; y.Bind == elf.STB_LOCAL && y.Type != elf.STT_FILE && y.File != want {
				t.Errorf("%s is of file %q", y.Name, y.File)
			}
		}
		if len(o.Compiler) != 1 {
			t.Errorf("compilers %q", o.Compiler)
		}
	})
}

// readelf runs readelf on the bytes of an object.
func readelf(t *testing.T, o *Object, args ...string) string {
	t.Helper()
	testtarget.Need(t, "readelf")
	name := filepath.Join(t.TempDir(), "object.o")
	if err := os.WriteFile(name, o.Data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("readelf", append(args, name)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// TestAgainstReadelf compares relocations, groups and frames with readelf.
func TestAgainstReadelf(t *testing.T) {
	each(t, func(t *testing.T, o *Object) {
		want := make(map[string]int) // offset and type
		for line := range strings.Lines(readelf(t, o, "-rW")) {
			if f := strings.Fields(line); len(f) >= 3 && strings.HasPrefix(f[2], "R_X86_64_") {
				want[f[0]+" "+f[2]]++
			}
		}
		for _, s := range o.Sections {
			if !slices.IsSortedFunc(s.Relocs, func(a, b Reloc) int { return int(a.Off) - int(b.Off) }) {
				t.Errorf("%s: not sorted", s.Name)
			}
			for _, r := range s.Relocs {
				want[strings.Repeat("0", 16-len(strconv.FormatUint(r.Off, 16)))+strconv.FormatUint(r.Off, 16)+" "+r.Type.String()]--
				if !r.Known() {
					t.Errorf("%s: %s", s.Name, r.Type)
				}
			}
		}
		for k, n := range want {
			if n != 0 {
				t.Errorf("relocation %s: readelf has %+d more", k, n)
			}
		}
		members := 0
		for _, g := range o.Groups {
			members += len(g.Members)
			if !g.COMDAT || g.Signature == "" {
				t.Errorf("group %+v", g)
			}
		}
		if n := strings.Count(readelf(t, o, "-gW"), "COMDAT group section"); n != len(o.Groups) || members < n || strings.Contains(t.Name(), "-O0") && n < 5 {
			t.Errorf("%d groups with %d members, readelf has %d", len(o.Groups), members, n)
		}
		frames := readelf(t, o, "--debug-dump=frames")
		if n := strings.Count(frames, " FDE cie="); n != len(o.Frames) {
			t.Errorf("%d FDEs, readelf has %d", len(o.Frames), n)
		}
		if n := strings.Count(frames, " CIE\n"); n != len(o.CIEs) {
			t.Errorf("%d CIEs, readelf has %d", len(o.CIEs), n)
		}
	})
}

// TestFrames: every function has its frame, and that of guarded an exception
// table and a personality routine.
func TestFrames(t *testing.T) {
	each(t, func(t *testing.T, o *Object) {
		type place struct {
			s   *Section
			off uint64
		}
		frames := make(map[place]*Frame)
		for _, f := range o.Frames {
			frames[place{f.Code, f.CodeOff}] = f
		}
		for _, y := range o.Symbols {
			if y.Type != elf.STT_FUNC || y.Section == nil {
				continue
			}
			f := frames[place{y.Section, y.Value}]
			if f == nil || f.CodeSize != y.Size {
				t.Errorf("%s (%d bytes) has the frame %+v", y.Name, y.Size, f)
				continue
			}
			if y.Name != "_Z7guardedi" {
				continue
			}
			if f.LSDA == nil || !strings.HasPrefix(f.LSDA.Name, ".gcc_except_table") || f.CIE.Personality == nil || !strings.Contains(f.CIE.Personality.Name, "__gxx_personality_v0") {
				t.Errorf("guarded has the table %+v and the personality %+v", f.LSDA, f.CIE.Personality)
			}
		}
	})
}

// TestDecode decodes all code and compares what direct calls and jumps refer to
// with objdump.
func TestDecode(t *testing.T) {
	each(t, func(t *testing.T, o *Object) {
		refs := 0
		for _, s := range o.Sections {
			if s.Flags&elf.SHF_EXECINSTR == 0 || s.Size == 0 {
				continue
			}
			insts, err := s.Decode(0, s.Size)
			if err != nil {
				t.Errorf("%s: %v", s.Name, err)
				continue
			}
			n, at := 0, uint64(0)
			for _, in := range insts {
				if in.Addr != at {
					t.Fatalf("%s: 0x%x after 0x%x", s.Name, in.Addr, at)
				}
				at = in.Next()
				n += len(in.Refs)
				for _, r := range in.Refs {
					// A call, and a load of a variable of its own section, lead to the
					// start of what they mean, whatever the relocation counts from.
					if r.Reloc.Type == elf.R_X86_64_PLT32 && r.Off != 0 && in.Op == "call" {
						t.Errorf("%s+0x%x: call %s%+d", s.Name, in.Addr, r.Sym, r.Off)
					}
					if r.Reloc.Sym.Type != elf.STT_SECTION && r.Sym != r.Reloc.Sym {
						t.Errorf("%s+0x%x: %s became %s", s.Name, in.Addr, r.Reloc.Sym, r.Sym)
					}
				}
			}
			if n != len(s.Relocs) || at != s.Size {
				t.Errorf("%s: %d references of %d, 0x%x bytes of 0x%x", s.Name, n, len(s.Relocs), at, s.Size)
			}
			refs += n
		}
		if refs < 25 {
			t.Errorf("%d references", refs)
		}
	})
}

// TestImmediate: an immediate behind the relocated field counts into the addend
// (-5, -8), and the reference must not.
func TestImmediate(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "gcc")
	out := filepath.Join(t.TempDir(), "out.o")
	cmd := exec.Command("gcc", "-x", "c", "-", "-O2", "-fPIE", "-fdata-sections", "-ffunction-sections", "-c", "-o", out)
	cmd.Stdin = strings.NewReader(`static int a[4]; static char b; int *get(void) { return a; } char *getb(void) { return &b; }
void set(void) { *(volatile int *)&a[1] = 77777; *(volatile char *)&b = 3; *(volatile int *)&a[2] += 1; }
int *end(void) { return a + 4; }`)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	o, err := Open(out)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range o.Sections {
		if s.Flags&elf.SHF_EXECINSTR == 0 {
			continue
		}
		insts, err := s.Decode(0, s.Size)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range insts {
			for _, r := range in.Refs {
				got = append(got, r.Sym.Name+strconv.FormatInt(r.Off, 10))
			}
		}
	}
	slices.Sort(got)
	if want := []string{"a0", "a16", "a4", "a8", "b0", "b0"}; !slices.Equal(slices.DeleteFunc(got, func(s string) bool { return s == "" }), want) {
		// The read and the write of += are one or two instructions.
		if got = slices.Compact(got); !slices.Equal(got, []string{"a0", "a16", "a4", "a8", "b0"}) {
			t.Errorf("%q", got)
		}
	}
}

// TestDWARF reads the debugging information and finds the functions by address.
func TestDWARF(t *testing.T) {
	each(t, func(t *testing.T, o *Object) {
		d, err := o.DWARF()
		if !slices.ContainsFunc(o.Sections, func(s *Section) bool { return s.Name == ".debug_info" }) {
			if !errors.Is(err, ErrNoDWARF) {
				t.Errorf("no debugging information: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for r := d.Reader(); ; {
			e, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if e == nil {
				break
			}
			if e.Tag != dwarf.TagSubprogram {
				continue
			}
			ranges, err := d.Ranges(e)
			if err != nil {
				t.Error(err)
			}
			for _, r := range ranges { // those with a cold part have two
				s, off, ok := o.AtAddress(r[0])
				if !ok {
					t.Errorf("a function is at 0x%x", r[0])
					continue
				}
				if y := s.At(int64(off)); y != nil && y.Value == off {
					found[y.Name] = true
				}
			}
		}
		if !found["_Z4picki"] || !found["_Z7guardedi"] {
			t.Errorf("%v", found)
		}
		if _, _, ok := o.AtAddress(0x1234); ok {
			t.Error("an address of no section has one")
		}
	})
}

// TestRefused: what is no object file for x86-64.
func TestRefused(t *testing.T) {
	t.Parallel()
	good := compile(t, builds[0]).Data
	set := func(off int, b byte) []byte {
		data := slices.Clone(good)
		data[off] = b
		return data
	}
	for _, c := range []struct {
		name, code string
		data       []byte
	}{
		{"empty", "object-not-elf", nil},
		{"text", "object-not-elf", []byte("int main(void) { return 0; }\n")},
		{"bitcode", "object-not-elf", []byte("BC\xc0\xde and more")},
		{"header only", "object-damaged", good[:40]},
		{"cut off", "object-damaged", good[:len(good)/2]},
		{"executable", "object-wrong-kind", set(16, byte(elf.ET_EXEC))},
		{"shared object", "object-wrong-kind", set(16, byte(elf.ET_DYN))},
		{"ARM", "object-wrong-kind", set(18, byte(elf.EM_AARCH64))},
		{"32 bits", "object-wrong-kind", set(elf.EI_CLASS, byte(elf.ELFCLASS32))},
		{"big endian", "object-wrong-kind", set(elf.EI_DATA, byte(elf.ELFDATA2MSB))},
		{"section names elsewhere", "object-damaged", set(62, 1)},
		{"no sections", "object-damaged", set(60, 1)},
	} {
		o, err := Parse(c.name, c.data)
		var e *fault.Error
		if o != nil || !errors.As(err, &e) || e.Code != c.code || e.Kind != fault.Unfit || e.Where != c.name || e.Why == "" {
			t.Errorf("%s: %#v", c.name, err)
		}
	}
	for name, code := range map[string]string{"/does/not/exist.o": "object-unreadable", t.TempDir(): "object-unreadable", "/dev/null": "object-unreadable"} {
		if _, err := Open(name); fault.CodeOf(err) != code {
			t.Errorf("%s: %v", name, err)
		}
	}
	large := filepath.Join(t.TempDir(), "large.o")
	f, err := os.Create(large)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(maxFile + 1); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(large); fault.CodeOf(err) != "object-too-large" {
		t.Errorf("%v", err)
	}
}

// check checks what the package promises of every object: that offsets lie within
// what they are offsets of, and that nothing panics.
func check(t *testing.T, o *Object) {
	for _, s := range o.Sections {
		if s.Data != nil && uint64(len(s.Data)) != s.Size {
			t.Fatalf("%s has %d bytes of %d", s.Name, len(s.Data), s.Size)
		}
		for _, y := range s.Symbols {
			if y.Section != s || y.Value > s.Size || y.Size > s.Size-y.Value {
				t.Fatalf("%+v in %d bytes", y, s.Size)
			}
		}
		for _, r := range s.Relocs {
			if r.Sym == nil || r.Off+uint64(r.Width()) > s.Size && s.Flags&elf.SHF_COMPRESSED == 0 {
				t.Fatalf("%+v in %d bytes", r, s.Size)
			}
			s.Resolve(r, r.Off)
		}
		s.At(0)
		s.At(int64(s.Size))
		s.At(-1)
		if s.Data != nil && s.Flags&elf.SHF_EXECINSTR != 0 {
			insts, err := s.Decode(0, s.Size)
			if err != nil && fault.CodeOf(err) != "unknown-instruction" {
				t.Fatal(err)
			}
			for _, in := range insts {
				_ = in.String()
			}
		}
	}
	for _, f := range o.Frames {
		if f.Code == nil || f.CodeOff > f.Code.Size || f.CodeSize > f.Code.Size-f.CodeOff || f.CIE == nil || f.LSDA != nil && f.LSDAOff >= f.LSDA.Size {
			t.Fatalf("%+v", f)
		}
	}
}

// edit gives a copy of an object with bytes changed: each edit is an offset of three
// bytes, counted from the end, and a byte.
func edit(data, edits []byte) []byte {
	data = slices.Clone(data)
	for ; len(edits) >= 4 && len(data) > 0; edits = edits[4:] {
		at := int(edits[0])<<16 | int(edits[1])<<8 | int(edits[2])
		data[len(data)-1-at%len(data)] = edits[3]
	}
	return data
}

// FuzzParse feeds Parse with damaged objects, and with whatever else there is.
func FuzzParse(f *testing.F) {
	bases := [][]byte{nil}
	for i, flags := range []string{"g++ -Os -ffunction-sections -fdata-sections", "clang++ -O1 -fPIC", "g++ -O1 -g -gz"} {
		bases = append(bases, compile(f, flags).Data)
		f.Add(byte(i+1), []byte{0, 0, 30, 255, 0, 4, 16, 1})
	}
	f.Add(byte(0), []byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, which byte, data []byte) {
		if base := bases[int(which)%len(bases)]; base != nil {
			data = edit(base, data)
		}
		o, err := Parse("fuzzed.o", data)
		if (o == nil) != (err != nil) {
			t.Fatalf("got %v and %v", o, err)
		}
		if err != nil {
			var e *fault.Error
			if !errors.As(err, &e) || e.Kind != fault.Unfit || !strings.HasPrefix(e.Code, "object-") {
				t.Fatalf("badly refused: %#v", err)
			}
			return
		}
		check(t, o)
		if d, err := o.DWARF(); (d == nil) != (err != nil) {
			t.Fatalf("got %v and %v", d, err)
		}
	})
}

// TestDamaged changes single bytes all over an object.
func TestDamaged(t *testing.T) {
	t.Parallel()
	good := compile(t, builds[0]).Data
	step := 97
	if testing.Short() {
		step = 997
	}
	refused, accepted := 0, 0
	for i := 0; i < len(good); i += step {
		data := slices.Clone(good)
		data[i] ^= byte(i)%255 + 1
		o, err := Parse("damaged.o", data)
		if err != nil {
			refused++
			continue
		}
		accepted++
		check(t, o)
	}
	if refused == 0 || accepted == 0 {
		t.Errorf("%d refused, %d accepted", refused, accepted)
	}
}
