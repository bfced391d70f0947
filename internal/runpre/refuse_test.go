package runpre

import (
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
)

// wantCode fails the test unless the error's code is one of these.
func wantCode(t *testing.T, err error, codes ...string) {
	t.Helper()
	got := fault.CodeOf(err)
	for _, c := range codes {
		if got == c {
			return
		}
	}
	t.Errorf("got %q (%v), want one of %q", got, err, codes)
}

// symbolOf gives a symbol of the matched object.
func symbolOf(t *testing.T, p *Placement, name string) *objfile.Symbol {
	t.Helper()
	for _, y := range p.m.pre.Symbols {
		if stem(y.Name) == name {
			return y
		}
	}
	t.Fatalf("the object has no %s", name)
	return nil
}

// TestWrongBuild compares with an image that other flags made.
func TestWrongBuild(t *testing.T) {
	t.Parallel()
	a := build(t, "gcc", "-O2 -fPIE", "-pie", "a.c", "main.c", "b.c")
	for _, other := range []struct{ name, compiler, flags, link string }{
		{"level", "gcc", "-O0 -fPIE", "-pie"},
		{"compiler", "clang", "-O2 -fPIE", "-pie"},
		{"lto", "gcc", "-O2 -fPIE -flto", "-pie -O2 -flto"},
	} {
		t.Run(other.name, func(t *testing.T) {
			t.Parallel()
			b := build(t, other.compiler, other.flags, other.link, "a.c", "main.c", "b.c")
			for _, image := range []string{b.image, b.stripped} {
				p, err := place(t, image, a.object)
				if err != nil {
					wantCode(t, err, "different-source")
					continue
				}
				// What is called placed must be right all the same.
				check(t, p, b.image)
				if err := p.Check([]*objfile.Symbol{symbolOf(t, p, "classify"), symbolOf(t, p, "compute")}); err == nil {
					t.Errorf("the functions of another build are taken for these")
				}
			}
		})
	}
}

// TestOneChange compares with an image of which one function has another source.
func TestOneChange(t *testing.T) {
	t.Parallel()
	l := build(t, "gcc", "-O2 -fPIE", "-pie", "a.c", "main.c", "b.c")
	src, err := os.ReadFile(filepath.Join("testdata", "a.c"))
	if err != nil {
		t.Fatal(err)
	}
	inc, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []struct{ name, old, new string }{
		{"code", "(int)t_global--", "(int)t_global++"},
		{"constant", "return 12;", "return 13;"},
		{"string", "eight %d", "Eight %d"},
		{"callee", "return helper(x) * 7", "return shift(x) * 7"},
		{"import", "puts(\"one is here\")", "perror(\"one is here\"), 4"},
	} {
		t.Run(change.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			text := strings.Replace(string(src), change.old, change.new, 1)
			if text == string(src) {
				t.Fatalf("%q is not in the source", change.old)
			}
			if err := os.WriteFile(filepath.Join(dir, "a.c"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, dir, "gcc", "-O2", "-fPIE", "-I", inc, "-ffunction-sections", "-fdata-sections", "-c", "a.c", "-o", "pre.o")
			for _, image := range []string{l.image, l.stripped} {
				p, err := place(t, image, filepath.Join(dir, "pre.o"))
				if err != nil {
					t.Fatal(err)
				}
				check(t, p, l.image)
				wantCode(t, p.Check([]*objfile.Symbol{symbolOf(t, p, "classify")}), "code-differs", "code-not-found")
				if err := p.Check([]*objfile.Symbol{symbolOf(t, p, "compute"), symbolOf(t, p, "counted")}); err != nil {
					t.Errorf("functions that are the same are refused: %v", err)
				}
			}
		})
	}
}

// TestAmbiguous has two static functions of the same code, and no symbols.
func TestAmbiguous(t *testing.T) {
	t.Parallel()
	l := build(t, "gcc", "-O2 -fPIE", "-pie", "b.c", "main.c", "a.c")
	p, err := place(t, l.stripped, l.object)
	if err != nil {
		t.Fatal(err)
	}
	// Both files have the same helper: callers tell which is whose.
	check(t, p, l.image)
	helper := symbolOf(t, p, "helper")
	if got, err := p.Find(helper); err != nil || got.Kind != patchlink.Addr {
		t.Errorf("helper: %+v, %v", got, err)
	}
	// Alone, nothing tells.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "h.c"), []byte("__attribute__((used)) static int helper(int x) { return x + 1; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "gcc", "-O2", "-fPIE", "-ffunction-sections", "-c", "h.c", "-o", "h.o")
	_, err = place(t, l.stripped, filepath.Join(dir, "h.o"))
	wantCode(t, err, "ambiguous-code")
}

// TestDebugFile takes the symbols from a separate file, and refuses another's.
func TestDebugFile(t *testing.T) {
	t.Parallel()
	a := build(t, "gcc", "-O1 -fPIE", "-pie -Wl,--build-id", "a.c", "main.c", "b.c")
	p, err := place(t, a.stripped, a.object, a.image)
	if err != nil {
		t.Fatal(err)
	}
	if placed, functions, _ := check(t, p, a.image); placed != functions {
		t.Errorf("%d of %d functions placed", placed, functions)
	}
	b := build(t, "gcc", "-O2 -fPIE", "-pie -Wl,--build-id", "a.c", "main.c", "b.c")
	_, err = Open(a.stripped, b.image)
	wantCode(t, err, "build-id")
}

func TestNotAnImage(t *testing.T) {
	t.Parallel()
	l := build(t, "gcc", "-O1 -fPIE", "-pie", "b.c", "main.c", "a.c")
	_, err := Open(l.object)
	wantCode(t, err, "not-an-image")
	_, err = Open(filepath.Join(t.TempDir(), "none"))
	wantCode(t, err, "image-unreadable")
	_, err = Open(t.TempDir())
	wantCode(t, err, "image-unreadable")
}

// TestDamaged opens and matches images with damaged bytes: it must neither panic
// nor hang.
func TestDamaged(t *testing.T) {
	t.Parallel()
	l := build(t, "gcc", "-O2 -fPIE", "-pie", "a.c", "main.c", "b.c")
	good, err := os.ReadFile(l.stripped)
	if err != nil {
		t.Fatal(err)
	}
	o, err := objfile.Open(l.object)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(l.stripped)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var spots []uint64
	for _, name := range []string{".eh_frame_hdr", ".rela.dyn", ".rela.plt", ".dynsym", ".dynamic", ".plt", ".text"} {
		if s := f.Section(name); s != nil {
			for at := s.Offset; at < s.Offset+min(s.Size, 96); at += 4 {
				spots = append(spots, at)
			}
		}
	}
	for at := uint64(16); at < 64+8*56; at += 4 { // the headers
		spots = append(spots, at)
	}
	path := filepath.Join(t.TempDir(), "damaged")
	matched, refused := 0, 0
	for i, at := range spots {
		data := append([]byte{}, good...)
		copy(data[at:], []byte{0xff, 0xff, 0xff, byte(i)})
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		im, err := Open(path)
		if err == nil {
			_, err = im.Match(o)
		}
		if err == nil {
			matched++
			continue
		}
		refused++
		if fault.CodeOf(err) == "" {
			t.Errorf("damage at %#x: %v has no code", at, err)
		}
	}
	t.Logf("%d damaged images: %d matched, %d refused", len(spots), matched, refused)
	if matched == 0 || refused == 0 {
		t.Errorf("%d matched, %d refused: the damage tests nothing", matched, refused)
	}
}
