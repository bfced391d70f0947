package objdiff

import (
	"debug/elf"
	"encoding/binary"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/objfile"
	"hotpatch/internal/testtarget"
)

const small = `int puts(const char *);
int level = 3;
int work(int x) { return x * FACTOR + level; }
int main(void) { return puts("small") + work(1); }
`

// TestRefusedObjects: objects that cannot be compared at all.
func TestRefusedObjects(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, pre, post, code string
		file                  string
	}{
		{name: "intermediate code", pre: "gcc -O2 -flto" + sections, code: "lto-object"},
		{name: "no function sections", pre: "gcc -O2 -fdata-sections", code: "no-function-sections"},
		{name: "no data sections", pre: "gcc -O2 -ffunction-sections", code: "no-function-sections"},
		{name: "no sections, clang", pre: "clang -O2", code: "no-function-sections"},
		{name: "other compiler", pre: "gcc -O2" + sections, post: "clang -O2" + sections, code: "different-compiler"},
		{name: "other options", pre: "gcc -g -O2" + sections, post: "gcc -g -O1" + sections, code: "different-compiler"},
		{name: "no compiler", pre: "gcc -O2 -fno-ident" + sections, code: "assembler-object"},
		{name: "assembler", pre: "gcc", code: "assembler-object", file: ".globl work\n.type work,@function\nwork: mov $FACTOR, %eax\n ret\n.size work, .-work\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			name, source := "small.c", small
			if c.file != "" {
				name, source = "small.S", c.file
			}
			if c.post == "" {
				c.post = c.pre
			}
			pre, post := compile(t, c.pre, name, source, "-DFACTOR=3"), compile(t, c.post, name, source, "-DFACTOR=4")
			d, err := Compare(pre, post, Options{Allow: Overrides})
			if got := codes(err); d != nil || !slices.Equal(got, []string{c.code}) {
				t.Fatalf("%v, want %s\n%s", err, c.code, describe(d))
			}
			checkRefusals(t, err, "out.o")
			// What is the same needs no patch, whatever it is.
			if d, err := Compare(pre, pre, Options{}); err != nil || !d.Empty() {
				t.Errorf("against itself: %v\n%s", err, describe(d))
			}
		})
	}
}

// TestUnknownRelocation gives one relocation a type that no assembler writes.
func TestUnknownRelocation(t *testing.T) {
	t.Parallel()
	flags := "gcc -O2" + sections
	pre, post := compile(t, flags, "small.c", small, "-DFACTOR=3"), compile(t, flags, "small.c", small, "-DFACTOR=4")
	data := slices.Clone(post.Data)
	for _, s := range post.Sections {
		if s.Type == elf.SHT_RELA && s.Name == ".rela.text.work" {
			binary.LittleEndian.PutUint32(data[s.Offset+8:], uint32(elf.R_X86_64_RELATIVE))
		}
	}
	bad, err := objfile.Parse("bad.o", data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Compare(pre, bad, Options{}); !slices.Equal(codes(err), []string{"unknown-relocation"}) || !strings.Contains(err.Error(), "R_X86_64_RELATIVE") {
		t.Errorf("%v", err)
	}
}

// TestCombined compares objects that ld -r made of two files, in which static
// functions and variables have the same names.
func TestCombined(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "ld")
	const one = `static int count; __attribute__((noinline)) static int step(int x) { return count += x; } int one(int x) { return step(x) + 1; }`
	const two = `static int count; __attribute__((noinline)) static int step(int x) { return count -= x * FACTOR; } int two(int x) { return step(x) + 2; }`
	combine := func(factor string) *objfile.Object {
		flags := "gcc -O2" + sections
		a, b := compile(t, flags, "one.c", one), compile(t, flags, "two.c", two, "-DFACTOR="+factor)
		out := filepath.Join(t.TempDir(), "both.o")
		if text, err := exec.Command("ld", "-r", "--unique", a.Path, b.Path, "-o", out).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		o, err := objfile.Open(out)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	d, err := Compare(combine("3"), combine("5"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Changed) != 1 || d.Changed[0].Pre.Name != "step" || d.Changed[0].Pre.File != "two.c" || len(d.New)+len(d.Removed) != 0 {
		t.Errorf("want step of two.c\n%s", describe(d))
	}
	checkShip(t, d)
}

// TestStaticsFollowTheirFunctions: static variables without anything to tell them
// apart but who uses them, numbered anew by one more in front.
func TestStaticsFollowTheirFunctions(t *testing.T) {
	t.Parallel()
	const source = `volatile int sink;
#ifdef NEW
int zero(int x) { static int count; return sink = count += x; }
#endif
int one(int x) { static int count; return sink = count += x; }
int two(int x) { static int count; return sink = count -= x; }
#ifdef NEW
int half(int x) { static int count; return sink = count += 2 * x; }
#endif
int three(int x) { static int count; return sink = count ^= x; }
`
	for _, flags := range []string{"gcc -O2", "gcc -O0", "gcc -O2 -fPIC", "clang -O1"} {
		pre, post := compile(t, flags+sections, "statics.c", source), compile(t, flags+sections, "statics.c", source, "-DNEW")
		d, err := Compare(pre, post, Options{})
		if err != nil {
			t.Fatal(err)
		}
		n, renumbered := 0, 0
		for b, a := range d.Twin {
			if a.Section != nil && strings.HasPrefix(a.Section.Name, ".bss") && isStaticLocal(a) {
				n++
				if x, y := user(t, pre, a), user(t, post, b); x != y {
					t.Errorf("%s: %s of %s goes on as %s of %s", flags, a.Name, x, b.Name, y)
				}
				if a.Name != b.Name {
					renumbered++
				}
			}
		}
		if n != 3 || strings.HasPrefix(flags, "gcc") && renumbered == 0 {
			t.Errorf("%s: %d variables with a twin, %d under another name\n%s", flags, n, renumbered, describe(d))
		}
		if changed, _, removed := names(d); len(changed)+len(removed) > 0 {
			t.Errorf("%s: changed %q, removed %q", flags, changed, removed)
		}
	}
}

// user gives the only function that uses a variable.
func user(t *testing.T, o *objfile.Object, y *objfile.Symbol) (name string) {
	t.Helper()
	for _, f := range o.Symbols {
		if !f.IsFunc() || f.Section == nil {
			continue
		}
		for _, r := range references(f) {
			if r.Sym != y || name == f.Name {
				continue
			}
			if name != "" {
				t.Fatalf("%s is used by %s and %s", y.Name, name, f.Name)
			}
			name = f.Name
		}
	}
	return name
}

// FuzzCompare compares a good object with a damaged one: whatever Parse accepts
// must give an answer. Each edit is an offset of three bytes, counted from the
// end of the file, and a byte.
func FuzzCompare(f *testing.F) {
	var pre, post []*objfile.Object
	for i, name := range []string{"broad.c", "broad.cc"} {
		for _, flags := range []string{"gcc -Os -fPIC", "gcc -O1 -g"} {
			pre = append(pre, compile(f, flags+sections, name, read(f, name)))
			post = append(post, compile(f, flags+sections, name, read(f, name), "-DNEW"))
			f.Add(byte(2*i), []byte{0, 0, 30, 255, 0, 4, 16, 1})
			f.Add(byte(2*i+1), []byte{0, 1, 30, 2, 0, 20, 16, 1})
		}
	}
	f.Fuzz(func(t *testing.T, which byte, edits []byte) {
		good := pre[int(which)%len(pre)]
		data := slices.Clone(post[int(which)%len(pre)].Data)
		for ; len(edits) >= 4; edits = edits[4:] {
			at := int(edits[0])<<16 | int(edits[1])<<8 | int(edits[2])
			data[len(data)-1-at%len(data)] = edits[3]
		}
		bad, err := objfile.Parse("fuzzed.o", data)
		if err != nil {
			return
		}
		for _, pair := range [][2]*objfile.Object{{good, bad}, {bad, good}, {bad, reparse(t, bad)}} {
			d, err := Compare(pair[0], pair[1], Options{})
			if (d == nil) == (err == nil) {
				t.Fatalf("got %v and %v", d, err)
			}
			if err == nil {
				checkShip(t, d)
			}
		}
	})
}

// TestDamaged compares an object with copies of itself in each of which one byte
// is another one, spread over the whole file.
func TestDamaged(t *testing.T) {
	t.Parallel()
	flags := "gcc -O2 -g" + sections
	pre := compile(t, flags, "broad.cc", read(t, "broad.cc"))
	step := 4999
	if testing.Short() {
		step = 49999
	}
	accepted := 0
	for i := 0; i < len(pre.Data); i += step {
		data := slices.Clone(pre.Data)
		data[i] ^= byte(i)%255 + 1
		post, err := objfile.Parse("damaged.o", data)
		if err != nil {
			continue
		}
		accepted++
		if d, err := Compare(pre, post, Options{}); (d == nil) == (err == nil) {
			t.Fatalf("byte %d: %v and %v", i, d, err)
		}
	}
	if accepted == 0 {
		t.Error("no damaged object was accepted")
	}
}
