package elfsym

import (
	"slices"
	"strings"
	"testing"
)

func TestIFunc(t *testing.T) {
	t.Parallel()
	const lib = `
static int fast(int x) { return x + 1; }
static int slow(int x) { return x + 2; }
static int (*resolve(void))(int) { return fast; }
int pick(int) __attribute__((ifunc("resolve")));
static int (*resolve2(void))(int) { return slow; }
int never(int) __attribute__((ifunc("resolve2")));
int keep_slow(int x) { return slow(x); }
`
	for _, c := range []struct{ name, build, main string }{
		{"bound now", "-Wl,-z,now", "return pick(1);"},
		{"lazy, called", "-Wl,-z,lazy", "if (pick(1) != 2) return 1;"},
		{"lazy, not called", "-Wl,-z,lazy", "if (getpid() == 0) pick(1);"},
		{"pointer", "-Wl,-z,lazy", "static int (*volatile p)(int); p = pick; if (p(1) != 2) return 1;"},
		{"in the program", "", "if (pick(1) != 2) return 1;"},
		{"in the program, not pie", "-no-pie -fno-pie", "if (pick(1) != 2) return 1;"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			main := strings.Replace(c.main, "return pick(1);", "if (pick(1) != 2) return 1;", 1)
			dir := files(t, map[string]string{"lib.c": lib, "p.c": "int pick(int);\n" + ready + "int main(void) { " + main + " ready(); }"})
			where := "libpick.so"
			if strings.HasPrefix(c.name, "in the") {
				run(t, dir, "gcc -O1 "+c.build+" -o p p.c lib.c")
				where = "p"
			} else {
				run(t, dir, "gcc -O1 -fPIC -shared -o libpick.so lib.c")
				run(t, dir, "gcc -O1 "+c.build+" -o p p.c ./libpick.so -Wl,-rpath,.")
			}
			s := liveSpace(t, dir, "./p")
			sym, err := s.One(query(t, where+"!pick"), Symbol.IsIFunc)
			if err != nil {
				t.Fatal(err)
			}
			if sym.IsFunc() {
				t.Error("an IFUNC is taken for a function")
			}
			got, err := s.IFuncImplementations(memory(t, s), sym)
			if c.name == "lazy, not called" {
				wantCode(t, err, "ifunc-unresolved")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if fast := one(t, s, where+"!fast"); !slices.Equal(got, []uint64{fast.Addr}) {
				t.Errorf("%x, want %#x", got, fast.Addr)
			}
			never := one(t, s, where+"!never")
			_, err = s.IFuncImplementations(memory(t, s), never)
			wantCode(t, err, "ifunc-unresolved")
			_, err = s.IFuncImplementations(memory(t, s), one(t, s, where+"!keep_slow"))
			wantCode(t, err, "not-an-ifunc")
		})
	}
	t.Run("libc", func(t *testing.T) {
		t.Parallel()
		dir := files(t, map[string]string{"p.c": ready + "#include <string.h>\nint main(int n, char **v) { volatile size_t k = strlen(v[0]); (void)k; ready(); }"})
		run(t, dir, "gcc -O1 -fno-builtin -o p p.c")
		s := liveSpace(t, dir, "./p")
		sym := one(t, s, "libc.so.6!strlen")
		got, err := s.IFuncImplementations(memory(t, s), sym)
		if err != nil || len(got) == 0 {
			t.Fatalf("%x, %v", got, err)
		}
		for _, a := range got {
			if !sym.Module.InText(a) || a == sym.Addr {
				t.Errorf("%#x is not an implementation", a)
			}
		}
	})
}
