package objdiff

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/fault"
)

// TestOtherInMemory changes the type of a variable v, of a thread-local one in a function, and of a
// member, all of which the program keeps.
func TestOtherInMemory(t *testing.T) {
	t.Parallel()
	const common = `
		#include <stdint.h>
		#include <stddef.h>
		enum small { S0, S1 }; enum smaller { T0, T1 };
		enum low { LO_NO, LO_YES, LO_MAYBE }; enum high { HI_MAYBE, HI_NO, HI_YES }; enum more { MORE_NO, MORE_YES, MORE_MAYBE, MORE_NEVER };
		enum bits { BIT_A = 1, BIT_B = 2 }; enum other { KIND_X, KIND_Y, KIND_Z };
		struct pair { int x, y; }; struct riap { int y, x; }; struct floats { float x, y; }; struct mixed { int n; float f; };
		struct list { struct list *next; int *p; }; struct tsil { struct tsil *next; long *p; }; struct opaque;
		union word { int n; float f; }; struct bits32 { unsigned a : 3, b : 29; }; struct holder { int *p; };
		enum small e1; enum smaller e2; enum low e3; enum high e4; enum more e5; enum bits e6; enum other e7;
		struct pair g1; struct riap g2; struct floats g3; struct mixed g4; struct list g5; struct tsil g6; union word g7; struct bits32 g8; struct holder g9;
	`
	c := []struct {
		before, after string
		refused       bool
	}{
		{"int *v", "unsigned *v", false},
		{"char *v", "unsigned char *v", false},
		{"unsigned char *v", "signed char *v", false},
		{"signed char *v", "uint8_t *v", false},
		{"long *v", "long long *v", false},
		{"size_t *v", "uint64_t *v", false},
		{"int *v", "const volatile int *v", false},
		{"int *v", "int *const volatile *v", true},
		{"char **v", "const char *const *v", false},
		{"int *v", "void *v", false},
		{"void *v", "long *v", false},
		{"void **v", "struct pair **v", false},
		{"struct pair *v", "void *v", false},
		{"int *v", "enum small *v", false},
		{"enum small *v", "unsigned *v", false},
		{"enum small *v", "long *v", true},
		{"int *v", "wchar_t *v", false},
		{"_Bool *v", "char *v", false},
		{"short *v", "int *v", true},
		{"unsigned short *v", "unsigned *v", true},
		{"int *v", "long *v", true},
		{"int *v", "float *v", true},
		{"long *v", "double *v", true},
		{"float *v", "double *v", true},
		{"long *v", "void **v", true},
		{"char *v", "char **v", true},
		{"char *v", "short *v", true},
		{"unsigned char *v", "uint32_t *v", true},
		{"int **v", "long **v", true},
		{"int ***v", "unsigned ***v", false},
		{"int ***v", "short ***v", true},
		{"int *v[3]", "unsigned *v[3]", false},
		{"int *v[3]", "long *v[3]", true},
		{"int (*v)[4]", "unsigned (*v)[4]", false},
		{"int (*v)[4]", "int (*v)[6]", true},
		{"int (*v)[4]", "float (*v)[4]", true},
		{"int (*v)[2][3]", "int (*v)[3][2]", true},
		{"int (**v)[4]", "int (**v)[5]", true},
		{"int *(*v)[4]", "long *(*v)[4]", true},
		{"int (*v)[4]", "int *v", false},
		{"int (*v)[4]", "int (*v)[]", false},
		{"int (*v)[4]", "long *v", true},
		{"char (*v)[16]", "unsigned char *v", false},
		{"char *v", "struct pair *v", false},
		{"struct pair *v", "unsigned char *v", false},
		{"int *v", "struct pair *v", false},
		{"float *v", "struct floats *v", false},
		{"float *v", "struct pair *v", true},
		{"struct mixed *v", "int *v", true},
		{"unsigned *v", "struct bits32 *v", false},
		{"struct opaque *v", "int *v", false},
		{"struct pair *v", "struct opaque *v", false},
		{"float *v", "union word *v", false},
		{"struct pair *v", "struct riap *v", true},
		{"struct pair **v", "struct riap **v", true},
		{"struct pair (*v)[2]", "struct riap (*v)[2]", true},
		{"struct list *v", "struct tsil *v", true},
		{"struct { int *p; } *v", "struct { unsigned *p; } *v", false},
		{"struct { int *p; } *v", "struct { long *p; } *v", true},
		{"struct { int *p; } v", "struct { long *p; } v", true},
		{"struct { int *p; } v[2]", "struct { long *p; } v[2]", true},
		{"struct { struct { int *p; } in; } v", "struct { struct { unsigned *p; } in; } v", false},
		{"union { int *p; long n; } v", "union { float *p; long n; } v", true},
		{"int (*v)(int *)", "int (*v)(long *)", false},
		{"int *(*v)(void)", "long *(*v)(void)", false},
		{"int (**v)(void)", "void **v", false},
		{"enum small v", "int v", false},
		{"enum small v", "enum smaller v", false},
		{"enum low v", "enum high v", true},
		{"enum low v", "enum more v", false},
		{"enum low v[2]", "enum high v[2]", true},
		{"enum low *v", "enum high *v", true},
		{"enum bits v", "enum other v", false},
		{"enum other v", "enum bits v", true},
	}
	source := func(after bool) string {
		var b strings.Builder
		b.WriteString(common)
		for i, x := range c {
			decl := x.before
			if after {
				decl = x.after
			}
			fmt.Fprintf(&b, "static %s;\nstruct m%d { int n; %s; } u%d;\n", named(decl, fmt.Sprintf("v%d", i)), i, named(decl, "v"), i)
			fmt.Fprintf(&b, "void *f%d(int n) { static __thread %s; return n == 0 ? (void *)&v%d : n == 1 ? (void *)&u%d : (void *)&t%d; }\n", i, named(decl, fmt.Sprintf("t%d", i)), i, i, i)
		}
		fmt.Fprintf(&b, "int changed(void) { return %t; }\n", after)
		return strings.NewReplacer("return true", "return 1", "return false", "return 0").Replace(b.String())
	}
	for _, compiler := range []string{"gcc", "clang"} {
		t.Run(compiler, func(t *testing.T) {
			t.Parallel()
			flags := debug[compiler] + " -O2 -g" + sections
			_, err := Compare(compile(t, flags, "a.c", source(false)), compile(t, flags, "a.c", source(true)), Options{})
			var list fault.List
			if !errors.As(err, &list) {
				t.Fatal(err)
			}
			why := make(map[string]string)
			for _, e := range list {
				f, ok := e.Details.(Finding)
				if !ok || f.Override != AllowLayout {
					t.Error(e)
				}
				why[strings.TrimSuffix(baseName(f.Symbol), ".")] = e.Why
			}
			for i, x := range c {
				for _, name := range []string{fmt.Sprintf("v%d", i), fmt.Sprintf("t%d", i), fmt.Sprintf("struct m%d", i)} {
					got, ok := why[name]
					if !ok {
						got, ok = why[fmt.Sprintf("f%d.", i)+name]
					}
					if ok != x.refused {
						t.Errorf("%s to %s: %s refused %t (%s), want %t", x.before, x.after, name, ok, got, x.refused)
					}
				}
			}
			if t.Failed() || testing.Verbose() {
				var all []string
				for k, s := range why {
					all = append(all, k+": "+s)
				}
				slices.Sort(all)
				t.Log(strings.Join(all, "\n"))
			}
		})
	}
}

// named gives a declaration of v another name.
func named(decl, name string) string { return variableV.ReplaceAllString(decl, name) }

var variableV = regexp.MustCompile(`\bv\b`)
