package runpre

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tiny has functions of a few bytes, two of them alike, between larger ones. Nothing in it
// refers to them. calls_step can only be where step is called from; calls_out could be
// there too.
const tiny = `
extern int puts(const char *);
int first(int x) { puts("the first of all"); return x / 3; }
int plus(int x) { return x + 1; }
int twin(int x) { return x * 5; }
int other(int x) { return x * 5; }
int middle(int x) { puts("in the middle"); return x / 7; }
int mixed(int x) { return x ^ 77; }
int last(int x) { puts("the last"); return x / 11; }
int behind(int x) { return x - 4; }
int __attribute__((noinline)) step(int x) { puts("the step"); return x / 13; }
extern int outside(int);
int calls_out(int x) { return outside(x); }
int calls_step(int x) { return step(x); }
`

// TestNeighbours: code of a few bytes is told by what stands next to it, if that is in the
// object's order, and if there is as much of it as there are functions.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	const all = "first plus twin other middle mixed last behind step calls_out calls_step"
	for _, tt := range []struct {
		name, kept, flags, link string
		placed                  string
	}{
		{"in its order", all, "", "", all},
		{"with sections", all, "-ffunction-sections", "", all},
		{"in another order", all, "-ffunction-sections", "-Wl,--sort-section=name", "first middle last step"},
		// One of the two that are alike is gone, and nobody can say which.
		{"one is gone", "first plus other middle mixed last behind step calls_out calls_step", "-ffunction-sections", "-Wl,--gc-sections", "first plus middle mixed last behind step calls_out calls_step"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			main := "int (*volatile f)(int);\nint outside(int x) { return x; }\nint main(void) {"
			for _, name := range strings.Fields(tt.kept) {
				main = "int " + name + "(int);\n" + main + " f = " + name + ";"
			}
			for name, text := range map[string]string{"tiny.c": tiny, "main.c": main + " return 0; }\n"} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			flags := append([]string{"-O1", "-fPIE"}, strings.Fields(tt.flags)...)
			run(t, dir, "gcc", append(append(flags, "-pie", "main.c", "tiny.c", "-o", "image"), strings.Fields(tt.link)...)...)
			run(t, dir, "gcc", "-O1", "-fPIE", "-ffunction-sections", "-fdata-sections", "-c", "tiny.c", "-o", "pre.o")
			run(t, dir, "strip", "-s", "image", "-o", "stripped")
			p, err := place(t, filepath.Join(dir, "stripped"), filepath.Join(dir, "pre.o"))
			if err != nil {
				t.Fatal(err)
			}
			check(t, p, filepath.Join(dir, "image"))
			for _, v := range p.Verdicts() {
				want := strings.Contains(" "+tt.placed+" ", " "+v.Symbol.Name+" ")
				if got := v.State == Placed; got != want {
					t.Errorf("%s: %v %s, placed should be %v", v.Symbol.Name, v.State, v.Why, want)
				}
			}
		})
	}
}
