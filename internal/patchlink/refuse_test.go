package patchlink

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/fault"
	"hotpatch/internal/testtarget"
)

// TestRefused has one change for each reason not to link it.
func TestRefused(t *testing.T) {
	t.Parallel()
	const frame = "__attribute__((noinline)) int work(int x) {\n@\n}\nint main(void) { return work(1); }\n"
	for _, tt := range []struct {
		name, top, body, flags, link, code, why string
	}{
		{"new thread-local of the program", "static __thread int a; +static __thread int b;", "+\tb++;", "-O0 -fPIE -pie", "", "new-thread-local", "new one of the patch"},
		{"data of a library", "#include <stdio.h>", "+\tif (stderr) return 2;", "-O0 -fno-pie -no-pie", "", "needs-pic", "stderr"},
		{"address of a library's function", "#include <stdlib.h>\nvolatile void *v;", "+\tv = (void *)exit;", "-O0 -fno-pie -no-pie", "", "needs-pic", "exit"},
		{"absolute address in a position-independent program", "int g;", "+\t__asm__ volatile (\"mov $g, %%eax\" ::: \"eax\");", "-O0 -fno-pie", "-pie -Wl,-z,notext", "needs-pic", "R_X86_64_32"},
		{"no build-id", "", "+\tx++;", "-O0", "-Wl,--build-id=none", "no-build-id", "build-id"},
		{"relocation of another sort", "", "+\t__asm__ volatile (\"lea _GLOBAL_OFFSET_TABLE_(%%rip), %%rax; movabs $work@GOTOFF, %%rcx\" ::: \"rax\", \"rcx\");", "-O0", "", "unknown-relocation", "GOTPC32"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			text := strings.ReplaceAll(tt.top, " +", "\n+") + "\n" + strings.Replace(frame, "@", tt.body+"\n\treturn x + 1;", 1)
			c := compileBoth(t, "unit.c", text, false, "gcc", strings.Fields(tt.flags), strings.Fields(tt.link)...)
			out := filepath.Join(t.TempDir(), "fix.so")
			r, err := Link(context.Background(), []Input{{byHand(t, c.pre, c.post, "work"), openTable(t, c.image)}}, Meta{Name: "fix", Version: 1}, out)
			var e *fault.Error
			if r != nil || !errors.As(err, &e) || e.Code != tt.code || !strings.Contains(err.Error(), tt.why) {
				t.Errorf("got %v, %v; want %s", r, err, tt.code)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("there is a patch nevertheless")
			}
		})
	}
}

// Where all functions that changed were inlined, there is nothing to replace.
func TestNothingReplaced(t *testing.T) {
	t.Parallel()
	const text = "static int small(int x) {\n-\treturn x + 1;\n+\treturn x + 2;\n}\nint (*volatile p)(int);\nint main(int argc, char **argv) {\n#ifdef KEEP\n\tp = small;\n#endif\n\t(void)argv; return small(argc);\n}\n"
	with := compileBoth(t, "unit.c", text, false, "gcc", []string{"-O2", "-DKEEP"})
	without := compileBoth(t, "unit.c", text, false, "gcc", []string{"-O2"})
	_, err := Link(context.Background(), []Input{{byHand(t, with.pre, with.post, "small"), openTable(t, without.image)}}, Meta{Name: "fix", Version: 1}, filepath.Join(t.TempDir(), "fix.so"))
	if fault.CodeOf(err) != "nothing-replaced" || !strings.Contains(err.Error(), "small") {
		t.Errorf("got %v", err)
	}
}

// A result that cannot be written is said so, and the linker's words are given.
func TestNotLinked(t *testing.T) {
	t.Parallel()
	const text = "int work(int x) {\n-\treturn x + 1;\n+\treturn x + 2;\n}\nint main(void) { return work(1); }\n"
	c := compileBoth(t, "unit.c", text, false, "gcc", []string{"-O0"})
	src := []Input{{byHand(t, c.pre, c.post, "work"), openTable(t, c.image)}}
	if _, err := Link(context.Background(), src, Meta{Name: "fix", Version: 1}, filepath.Join(t.TempDir(), "none", "fix.so")); fault.CodeOf(err) != "patch-not-written" {
		t.Errorf("got %v", err)
	}
	src[0].Base = libs{src[0].Base, filepath.Join(testtarget.Root(t), "README.md")}
	if _, err := Link(context.Background(), src, Meta{Name: "fix", Version: 1}, filepath.Join(t.TempDir(), "fix.so")); fault.CodeOf(err) != "link" || !strings.Contains(err.Error(), "README.md") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Link(ctx, src, Meta{Name: "fix", Version: 1}, filepath.Join(t.TempDir(), "fix.so")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// libs is a base with another list of libraries.
type libs struct {
	Base
	path string
}

func (l libs) Libraries() []string { return []string{l.path} }

// The same inputs give the same bytes.
func TestReproducible(t *testing.T) {
	t.Parallel()
	c := compileBoth(t, "rows.c", rowsC+mainC, false, "gcc", []string{"-O2"})
	a, r := c.patch(t, compare(t, c.pre, c.post, "again", "compute"))
	b, _ := c.patch(t, compare(t, c.pre, c.post, "again", "compute"))
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if string(x) != string(y) {
		t.Error("two builds differ")
	}
	p := r.Patch
	if p.Name != "fix" || p.Version != 1 || len(p.Exports)+len(p.Weak) != 0 || len(p.Replacements) != 2 || len(p.Images) != 1 {
		t.Errorf("the patch is %+v", p)
	}
	if len(r.Functions) != 2 || r.Functions[1].Name != "compute" || r.Bound == 0 || r.Bound != len(p.Binds) || strings.Join(r.Imports, " ") == "" {
		t.Errorf("the report is %+v", r)
	}
}
