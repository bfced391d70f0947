package unwind

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"hotpatch/elfsym"
	"hotpatch/internal/testtarget"
)

// debugFrameSpec is a program whose own functions are described by .debug_frame only.
func debugFrameSpec(t testing.TB, compiler string) testtarget.Spec {
	return testtarget.Spec{
		Files: source(t, "plain.c"), Compiler: compiler, Name: "plain",
		Flags: []string{"-O2", "-g", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"},
	}
}

// TestDebugFrame walks through functions that only .debug_frame describes: in
// the program itself, in a separate file, and nowhere.
func TestDebugFrame(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "objcopy")
	for _, compiler := range []string{"gcc", "clang"} {
		t.Run(compiler, func(t *testing.T) {
			path := testtarget.Build(t, debugFrameSpec(t, compiler))
			debug := filepath.Join(t.TempDir(), "plain.debug")
			stripped := filepath.Join(t.TempDir(), "plain")
			for _, args := range [][]string{
				{"--only-keep-debug", "--compress-debug-sections=zlib", path, debug},
				{"--strip-debug", "--keep-symbol=main", path, stripped},
			} {
				if out, err := exec.Command("objcopy", args...).CombinedOutput(); err != nil {
					t.Fatalf("objcopy %v: %v\n%s", args, err, out)
				}
			}
			want := []string{"innermost", "middle", "outer", "main"}
			for _, c := range []struct {
				name, path string
				image      func(*elfsym.Module) *elfsym.Image
				complete   bool
			}{
				{"in the program", path, nil, true},
				{"in a separate file", stripped, func(m *elfsym.Module) *elfsym.Image {
					if m.Kind != elfsym.Executable {
						return nil
					}
					return openImage(t, debug)
				}, true},
				{"nowhere", stripped, nil, false},
			} {
				p := testtarget.Start(t, c.path)
				x := open(t, p.PID())
				x.u.DebugImage = c.image
				x.u.Prepare()
				w := x.walks(t)[p.PID()]
				if w.Complete != c.complete {
					t.Errorf("%s: %s", c.name, chain(&w))
				}
				got := names(&w)
				i := slices.Index(got, "innermost")
				if i < 0 {
					t.Fatalf("%s: %s", c.name, chain(&w))
				}
				if c.complete && !slices.Equal(got[i:i+len(want)], want) {
					t.Errorf("%s: %v", c.name, got)
				}
				if !c.complete && i != len(got)-1 {
					t.Errorf("%s: it went on without information: %s", c.name, chain(&w))
				}
				p.Stop()
			}
		})
	}
}
