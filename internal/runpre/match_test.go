package runpre

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
	"hotpatch/internal/testtarget"
)

// slots keeps the number of compilers that run at once small.
var slots = make(chan struct{}, 2)

// run runs a tool in a directory.
func run(t testing.TB, dir, tool string, args ...string) {
	t.Helper()
	testtarget.Need(t, tool)
	slots <- struct{}{}
	defer func() { <-slots }()
	cmd := exec.Command(tool, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
}

// linked is an image with its symbols, without, and the object to match.
type linked struct{ image, stripped, object string }

// build links the file and the others, and compiles the file once more as it is
// done for a patch. The others are compiled with the same flags.
func build(t testing.TB, compiler, flags, link, file string, others ...string) linked {
	t.Helper()
	dir := t.TempDir()
	src, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	args := append(strings.Fields(flags), "-I", src)
	var objects []string
	for _, f := range append([]string{file}, others...) {
		o := f + ".o"
		cc := compiler
		if strings.HasSuffix(f, ".cc") {
			cc = map[string]string{"gcc": "g++", "clang": "clang++"}[compiler]
		}
		run(t, dir, cc, append(args, "-c", filepath.Join(src, f), "-o", o)...)
		if f == file {
			run(t, dir, cc, append(args, "-ffunction-sections", "-fdata-sections", "-c", filepath.Join(src, f), "-o", "pre.o")...)
		}
		objects = append(objects, o)
	}
	linker := map[string]string{"gcc": "g++", "clang": "clang++"}[compiler]
	run(t, dir, linker, append(append(strings.Fields(link), objects...), "-o", "image")...)
	run(t, dir, "strip", "-s", "image", "-o", "stripped")
	return linked{filepath.Join(dir, "image"), filepath.Join(dir, "stripped"), filepath.Join(dir, "pre.o")}
}

// place matches.
func place(t testing.TB, image, object string, debug ...string) (*Placement, error) {
	t.Helper()
	im, err := Open(image, debug...)
	if err != nil {
		t.Fatal(err)
	}
	o, err := objfile.Open(object)
	if err != nil {
		t.Fatal(err)
	}
	return im.Match(o)
}

// truth are the addresses that the symbol table of an image has for each name.
func truth(t testing.TB, image string) map[string][]elf.Symbol {
	t.Helper()
	f, err := elf.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string][]elf.Symbol)
	file := ""
	for _, s := range list {
		if elf.ST_TYPE(s.Info) == elf.STT_FILE {
			file = s.Name
			continue
		}
		name, _, _ := strings.Cut(s.Name, "@")
		if elf.ST_BIND(s.Info) == elf.STB_LOCAL && s.Section != elf.SHN_UNDEF {
			names[file+":"+stem(name)] = append(names[file+":"+stem(name)], s)
		}
		if s.Section != elf.SHN_UNDEF {
			names[name] = append(names[name], s)
		}
	}
	// An undefined function that has a value is, for everybody, the PLT entry there.
	if dynamic, err := f.DynamicSymbols(); err == nil {
		for _, s := range dynamic {
			if s.Section == elf.SHN_UNDEF && s.Value != 0 {
				names[s.Name] = append(names[s.Name], s)
			}
		}
	}
	return names
}

// check compares everything that was found with the image's own symbol table,
// which the matcher of a stripped image has not seen. It gives how many of the
// object's functions were placed, of how many, and how many symbols agreed.
func check(t *testing.T, p *Placement, image string) (placed, functions, agreed int) {
	t.Helper()
	names := truth(t, image)
	right := func(y *objfile.Symbol, at uint64) bool {
		list := names[y.Name]
		if y.Bind == elf.STB_LOCAL {
			list = names[y.File+":"+stem(y.Name)]
		}
		for _, s := range list {
			if s.Value == at {
				return true
			}
		}
		return false
	}
	for _, v := range p.Verdicts() {
		functions++
		if v.State == Placed {
			placed++
			if !right(v.Symbol, v.Vaddr) {
				t.Errorf("%s was placed at %#x, and is not there", v.Symbol.Name, v.Vaddr)
			}
		} else {
			t.Logf("%s: %s %s", v.Symbol.Name, v.State, v.Why)
		}
	}
	for _, y := range p.m.pre.Symbols {
		if y.Name == "" || y.Type == elf.STT_FILE || y.Type == elf.STT_SECTION || strings.HasPrefix(y.Name, ".L") {
			continue // linkers leave out names that begin with .L
		}
		got, err := p.Find(y)
		if err != nil {
			if fault.CodeOf(err) == "contradiction" {
				t.Errorf("%s: %v", y.Name, err)
			}
			continue
		}
		at := got.Vaddr
		switch got.Kind {
		case patchlink.Addr:
		case patchlink.TPOff:
			at = uint64(got.Offset + p.m.im.tlsSize)
		case patchlink.TLS:
			if y.Section == nil {
				continue
			}
			at = uint64(got.Offset)
		default:
			if d := p.m.im.relocs[at]; got.Kind == patchlink.GOT && d.name != y.Name {
				t.Errorf("%s: slot %#x is that of %q", y.Name, at, d.name)
			}
			if name, ok := p.m.im.inPLT(at); got.Kind == patchlink.PLT && (!ok || name != y.Name) {
				t.Errorf("%s: entry %#x is that of %q", y.Name, at, name)
			}
			agreed++
			continue
		}
		if !right(y, at) {
			t.Errorf("%s was found at %#x (kind %d), and is not there", y.Name, at, got.Kind)
		}
		agreed++
	}
	return placed, functions, agreed
}

// shapes are the kinds of images, with flags to compile and to link.
var shapes = []struct{ name, compile, link string }{
	{"pie", "-fPIE", "-pie"},
	{"no-pie", "-fno-pie", "-no-pie"},
	{"pic", "-fPIC", "-pie"},
	{"shared", "-fPIC", "-shared"},
}

func TestMatrix(t *testing.T) {
	t.Parallel()
	levels := []string{"-O0", "-O1", "-O2", "-O3", "-Os"}
	if testing.Short() {
		levels = []string{"-O2"}
	}
	for _, compiler := range []string{"gcc", "clang"} {
		for _, shape := range shapes {
			for _, level := range levels {
				for _, file := range []string{"a.c", "c.cc"} {
					if testing.Short() && file == "c.cc" && (shape.name == "no-pie" || shape.name == "pic") {
						continue // C++ takes compilers seconds
					}
					if file == "c.cc" && (level == "-O1" || level == "-O3" || shape.name == "pic") && os.Getenv("HOTPATCH_TEST_ALL") != "1" {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/%s/%s", compiler, shape.name, level, file), func(t *testing.T) {
						t.Parallel()
						others := []string{"main.c", "b.c"}
						l := build(t, compiler, level+" "+shape.compile, shape.link, file, others...)
						for _, image := range []string{l.image, l.stripped} {
							p, err := place(t, image, l.object)
							if err != nil {
								t.Fatal(err)
							}
							placed, functions, agreed := check(t, p, l.image)
							t.Logf("%s: %d of %d functions placed, %d symbols", filepath.Base(image), placed, functions, agreed)
							if image == l.image && placed != functions {
								t.Errorf("%d of %d functions were placed by their symbols", placed, functions)
							}
							if placed*10 < functions*8 {
								t.Errorf("%d of %d functions were placed", placed, functions)
							}
						}
					})
				}
			}
		}
	}
}
