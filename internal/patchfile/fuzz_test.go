package patchfile

import (
	"errors"
	"os"
	"strings"
	"testing"

	"hotpatch/internal/fault"
)

func FuzzParse(f *testing.F) {
	for _, flags := range []string{"-O2 -s", "-O2 -s -Wl,-z,pack-relative-relocs", "-O2 -flto"} {
		data, err := os.ReadFile(library(f, "gcc", strings.Fields(flags)...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add("full.so", data)
	}
	data, err := os.ReadFile(assemble(f, assembled))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("bound.so", data)
	f.Add("", []byte{})
	f.Fuzz(func(t *testing.T, path string, data []byte) {
		p, err := Parse(path, data)
		if (p == nil) != (err != nil) {
			t.Fatalf("got %v and %v", p, err)
		}
		if err != nil {
			var e *fault.Error
			if !errors.As(err, &e) || e.Kind != fault.Unfit || !strings.HasPrefix(e.Code, "patch-") || !printable(e.Error(), 1<<20) {
				t.Fatalf("badly refused: %#v", err)
			}
			return
		}
		if badName(p.Name) != "" || p.Version == 0 || !printable(p.Description, maxText) {
			t.Fatalf("named %q, version %d", p.Name, p.Version)
		}
		for _, r := range p.Replacements {
			if !p.Image.Executable(r.New.Addr) || (r.Old == "") == (r.OldAddr == 0) || !printable(r.Old, maxSymbol) || !printable(r.New.Name, maxSymbol) {
				t.Fatalf("replacement %+v", r)
			}
		}
		for _, e := range append(p.Exports, p.Weak...) {
			if !p.Image.Executable(e.Addr) || e.Name == "" || !printable(e.Name, maxSymbol) {
				t.Fatalf("export %+v", e)
			}
		}
		var end uint64
		for _, b := range p.Binds {
			b0 := make([]byte, b.Kind.Size())
			if err := p.Image.ReadVaddr(b0, b.Place); err != nil || b.Place < end || b.Kind < BindAbs64 || b.Kind > BindAbs32S {
				t.Fatalf("place %+v: %v", b, err)
			}
			end = b.Place + uint64(len(b0))
		}
		for _, r := range p.Refs {
			if r.Slot%8 != 0 || r.Query == "" {
				t.Fatalf("reference %+v", r)
			}
		}
	})
}
