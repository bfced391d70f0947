package objdiff

import (
	"slices"
	"testing"

	"hotpatch/internal/objfile"
)

// TestLabelTable: the table of a computed goto whose function changes goes with it,
// also where it leads to the same places as before. The program's own leads into
// the old code, whose stack frame is another.
func TestLabelTable(t *testing.T) {
	t.Parallel()
	const source = `
#ifdef NEW
enum { SIZE = 72 };
#else
enum { SIZE = 40 };
#endif
extern void fill(char *, unsigned long);
long f(const unsigned char *p, long x) {
	static const void *const table[] = {&&add, &&mul, &&end};
	char b[SIZE];
	fill(b, sizeof b);
	goto *table[*p++];
add:
	x += b[1];
	goto *table[*p++];
mul:
	x *= 3;
	goto *table[*p++];
end:
	return x;
}
`
	for _, compiler := range []string{"gcc", "clang"} {
		t.Run(compiler, func(t *testing.T) {
			t.Parallel()
			flags := debug[compiler] + " -O2 -g" + sections
			d, err := Compare(compile(t, flags, "labels.c", source), compile(t, flags, "labels.c", source, "-DNEW"), Options{})
			if err != nil || len(d.Changed) != 1 {
				t.Fatalf("%v\n%s", err, describe(d))
			}
			i := slices.IndexFunc(d.Post.Symbols, func(y *objfile.Symbol) bool { return !y.IsFunc() && y.Size == 24 })
			if i < 0 {
				t.Fatal("there is no table")
			}
			if y := d.Post.Symbols[i]; d.Twin[y] != nil || !slices.Contains(d.Ship, y.Section) {
				t.Errorf("%s is left to the program\n%s", y.Name, describe(d))
			}
		})
	}
}
