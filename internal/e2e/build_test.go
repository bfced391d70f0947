package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// built is one way of compiling the program of which patches are made.
type built struct {
	cxx      bool
	compiler string // gcc or clang
	kind     string // pie, no-pie or library
	level    string
	strip    bool
}

func (b built) String() string {
	name := map[bool]string{false: "C", true: "C++"}[b.cxx]
	return fmt.Sprintf("%s %s %s %s stripped=%v", name, b.compiler, b.kind, b.level, b.strip)
}

func (b built) driver() string {
	return map[string]string{"gcc": map[bool]string{false: "gcc", true: "g++"}[b.cxx], "clang": map[bool]string{false: "clang", true: "clang++"}[b.cxx]}[b.compiler]
}

func (b built) source() string { return map[bool]string{false: "built.c", true: "built.cc"}[b.cxx] }

// compile runs the compiler in a directory in which the source has its own name: the
// name goes into the object.
func (b built) compile(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command(b.driver(), args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

func (b built) flags() []string {
	flags := []string{b.level, "-g", "-DPLACE"}
	switch b.kind {
	case "pie":
		flags = append(flags, "-fPIE")
	case "no-pie":
		flags = append(flags, "-fno-pie")
	case "library":
		flags = append(flags, "-fPIC", "-DLIBRARY")
	}
	return flags
}

// object compiles the source for a patch, changed by edit.
func (b built) object(t *testing.T, name string, edit func(string) string, more ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	source, err := os.ReadFile(filepath.Join(testtarget.Root(t), "testdata", "targets", b.source()))
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, b.source()), []byte(edit(string(source))), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	args := append(append(b.flags(), "-ffunction-sections", "-fdata-sections", "-c", "-o", "object.o"), more...)
	b.compile(t, dir, append(args, b.source())...)
	return filepath.Join(dir, "object.o")
}

// base links what runs, as its distributor would: with no section for each function,
// and stripped. It gives the program, and the image that has the code.
func (b built) base(t *testing.T) (program, image string) {
	t.Helper()
	dir := t.TempDir()
	source, err := os.ReadFile(filepath.Join(testtarget.Root(t), "testdata", "targets", b.source()))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, b.source()), source, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(dir, "program")
	image = program
	switch b.kind {
	case "pie", "no-pie":
		b.compile(t, dir, append(b.flags(), "-"+b.kind, "-Wl,--build-id", "-o", "program", b.source())...)
	case "library":
		image = filepath.Join(dir, "libbuilt.so")
		b.compile(t, dir, append(b.flags(), "-shared", "-Wl,--build-id", "-Wl,-soname,libbuilt.so", "-o", "libbuilt.so", b.source())...)
		main := "void serve(void); int main(void) { serve(); return 0; }\n"
		if err := os.WriteFile(filepath.Join(dir, "main"+filepath.Ext(b.source())), []byte(main), 0o644); err != nil {
			t.Fatal(err)
		}
		b.compile(t, dir, "-o", "program", "main"+filepath.Ext(b.source()), "-L.", "-lbuilt", "-Wl,-rpath,"+dir)
	}
	if b.strip {
		run(t, "strip", "-s", image)
	}
	return program, image
}

func same(s string) string   { return s }
func fixing(s string) string { return "#define FIX\n#line 1\n" + s }

// TestBuild: a patch is made of two objects for a stripped program or library, goes into
// the running process, behaves as the new source, keeps the state, and comes out again.
func TestBuild(t *testing.T) {
	t.Parallel()
	var all []built
	for _, level := range []string{"-O2", "-O0", "-O1", "-O3", "-Os"} {
		for _, cxx := range []bool{false, true} {
			for _, kind := range []string{"pie", "no-pie", "library"} {
				for _, compiler := range []string{"gcc", "clang"} {
					all = append(all, built{cxx, compiler, kind, level, len(all)%3 != 2})
				}
			}
		}
	}
	for _, b := range some(all, 0, 10) {
		t.Run(b.String(), func(t *testing.T) {
			t.Parallel()
			testtarget.Need(t, b.driver())
			program, image := b.base(t)
			pre, post := b.object(t, "pre", same), b.object(t, "post", fixing)
			patch := filepath.Join(t.TempDir(), "fix.so")
			args := []string{"build", "--pre", pre, "--post", post, "--base", image, "-o", patch, "--name", "fix", "--cve", "CVE-2026-0001"}
			must(t, args...)
			must(t, "inspect", patch)

			p := testtarget.Start(t, program)
			before := testtarget.TextSnapshot(t, p.PID())
			if b.cxx {
				askBuiltCxx(t, p, patch)
			} else {
				askBuiltC(t, p, patch)
			}
			verify(t, p.PID())
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

func askBuiltC(t *testing.T, p *testtarget.Process, patch string) {
	t.Helper()
	is := func(x, result, hits int) {
		t.Helper()
		names := []string{"zero", "one", "two", "three"}
		want := fmt.Sprintf("%d -> %d hits %d calls %d own %d %s", x, result, hits, hits, hits+5, names[hits&3])
		if got := p.Ask(strconv.Itoa(x), `^-?\d+ -> `); got != want {
			t.Fatalf("it says %q, want %q", got, want)
		}
	}
	is(8, 22, 1)  // (8+1)+10+3
	is(9, 293, 2) // (9+20)*10+3
	apply(t, p.PID(), patch)
	is(8, 1022, 3)
	is(9, 1293, 4)
	is(12, 1073, 5) // 12*5+10+3
	revert(t, p.PID(), "fix")
	is(9, 293, 6)
	apply(t, p.PID(), patch)
	is(8, 1022, 7)
	revert(t, p.PID(), "fix")
	is(9, 293, 8)
}

func askBuiltCxx(t *testing.T, p *testtarget.Process, patch string) {
	t.Helper()
	is := func(x int, want string) {
		t.Helper()
		if got := p.Ask(strconv.Itoa(x), `^-?\d+ -> `); got != fmt.Sprintf("%d -> %s", x, want) {
			t.Fatalf("it says %q, want %q", got, want)
		}
	}
	is(3, "10 hits 1")
	is(-1, "caught negative -1 hits 2")
	apply(t, p.PID(), patch)
	is(3, "1012 hits 3")
	is(-2, "caught negative -2 hits 4")
	is(13, "1000008 hits 5")
	is(14, "caught fourteen hits 6")
	is(100, "6007 hits 7")
	revert(t, p.PID(), "fix")
	is(13, "177 hits 8")
}

// TestBuildNothing: changes that make no difference in the code are said to be none.
func TestBuildNothing(t *testing.T) {
	lengthy(t)
	t.Parallel()
	for _, cxx := range []bool{false, true} {
		b := built{cxx, "gcc", "pie", "-O2", true}
		_, image := b.base(t)
		pre := b.object(t, "pre", same)
		for name, edit := range map[string]func(string) string{
			"the same": same,
			"comment":  func(s string) string { return "/* a comment */" + s },
			"renamed": func(s string) string {
				return strings.NewReplacer("char line[64]", "char words[64]", "(line, sizeof line", "(words, sizeof words", "(line)", "(words)").Replace(s)
			},
			"moved lines": func(s string) string { return "\n\n\n" + s },
		} {
			post := b.object(t, name, edit)
			out := filepath.Join(t.TempDir(), "fix.so")
			refused(t, 7, "nothing-to-patch", "build", "--pre", pre, "--post", post, "--base", image, "-o", out)
			if _, err := os.Stat(out); err == nil {
				t.Errorf("%s: there is a patch", name)
			}
		}
	}
}

// TestBuildRefused: a base of another source or another build is found out, and so is a
// change that no patch can make.
func TestBuildRefused(t *testing.T) {
	t.Parallel()
	b := built{false, "gcc", "pie", "-O2", true}
	_, image := b.base(t)
	pre, post := b.object(t, "pre", same), b.object(t, "post", fixing)
	other := built{false, "gcc", "pie", "-O0", true}
	_, otherImage := other.base(t)
	out := filepath.Join(t.TempDir(), "fix.so")
	change := func(name, from, to string) string {
		return b.object(t, name, func(s string) string {
			if !strings.Contains(s, from) {
				t.Fatalf("%q is not in the source", from)
			}
			return strings.Replace(s, from, to, 1)
		})
	}
	for _, test := range []struct{ code, pre, post, base string }{
		{"different-source", pre, post, otherImage},
		{"different-source", pre, post, testtarget.Hotpatch(t)},
		{"changed-data", pre, change("data", "int exported = 3;", "int exported = 4;"), image},
		{"removed-static", pre, change("static", "	static int turn;\n	calls++;\n	chosen = table[turn++ & 1];", "	calls++;\n	chosen = table[calls & 1];"), image},
	} {
		refused(t, 4, test.code, "build", "--pre", test.pre, "--post", test.post, "--base", test.base, "-o", out)
	}
	refused(t, 2, "usage", "build", "--pre", pre, "--base", image, "-o", out)
	refused(t, 2, "usage", "build", "--pre", pre, "--post", post, "-o", out)
	if _, err := os.Stat(out); err == nil {
		t.Error("there is a patch")
	}
}

// TestBuildOtherBase: a base that was compiled with other options than the objects is found out
// by the functions that the patch leaves alone, and can be allowed.
func TestBuildOtherBase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	const source = `struct state {
#ifdef WIDE
	long more[3];
#endif
	int x, y;
};
static struct state now;
__attribute__((noinline)) void set(int x) { now.x = x; now.y = x * 3; }
__attribute__((noinline)) int get(int x) { return x * 1000 CHANGE; }
__attribute__((noinline)) int sum(void) { return now.x + now.y; }
__attribute__((noinline)) int cube(int x) { return x * x * x; }
__attribute__((noinline)) int cut(int x) { return x > 12345 ? 12345 : x; }
`
	if err := os.WriteFile(path("state.c"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	flags := []string{"-O2", "-g", "-fPIC", "-c", path("state.c")}
	run(t, "gcc", append(flags, "-DCHANGE=", "-ffunction-sections", "-fdata-sections", "-o", path("pre.o"))...)
	run(t, "gcc", append(flags, "-DCHANGE=+1", "-ffunction-sections", "-fdata-sections", "-o", path("post.o"))...)
	run(t, "gcc", append(flags, "-DCHANGE=", "-DWIDE", "-o", path("base.o"))...)
	run(t, "gcc", "-shared", "-Wl,--build-id", path("base.o"), "-o", path("base.so"))
	args := []string{"build", "--pre", path("pre.o"), "--post", path("post.o"), "--base", path("base.so"), "-o", path("fix.so")}
	if r := refused(t, 4, "base-differs", args...); !strings.Contains(r.Stderr, "its code of set") || !strings.Contains(r.Stderr, "allow it by the name base") {
		t.Errorf("%v", r)
	}
	if r := must(t, append(args, "--allow", "base")...); !strings.Contains(r.Stdout+r.Stderr, "base-differs") {
		t.Errorf("no warning of what was allowed\n%v", r)
	}
}

// TestBuildInterposed: a function that two libraries have is replaced in both, or not at all: all
// calls go to the one that the dynamic linker has found first.
func TestBuildInterposed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{
		"scale.h":   "static long used;\ntemplate <class T> __attribute__((noinline)) T scale(T x) { used++; return x * 10 FIX; }\n",
		"first.cc":  "#include \"scale.h\"\nlong first(long x) { return scale(x) + used - used; }\n",
		"second.cc": "#include \"scale.h\"\nlong second(long x) { return scale(x) + 1000; }\n",
		"main.cc": "#include <stdio.h>\n#include <unistd.h>\nlong first(long), second(long);\nstatic long calls;\n__attribute__((noinline)) long twice(long x) { return ++calls * x FIX; }\nint main() {\n\tlong x;\n\tsetvbuf(stdout, NULL, _IOLBF, 0);\n" +
			"\tprintf(\"READY %d\\n\", getpid());\n\twhile (scanf(\"%ld\", &x) == 1)\n\t\tprintf(\"said %ld %ld\\n\", first(x), second(x));\n}\n",
	} {
		if err := os.WriteFile(path(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var args []string
	for _, name := range []string{"first", "second"} {
		flags := []string{"-O2", "-g", "-fPIC", "-ffunction-sections", "-fdata-sections", "-c", path(name + ".cc")}
		run(t, "g++", append(flags, "-DFIX=", "-o", path(name+".pre.o"))...)
		run(t, "g++", append(flags, "-DFIX=+7", "-o", path(name+".post.o"))...)
		run(t, "g++", "-shared", "-Wl,--build-id", path(name+".pre.o"), "-o", path("lib"+name+".so"))
		args = append(args, "--pre", path(name+".pre.o"), "--post", path(name+".post.o"), "--base", path("lib"+name+".so"))
	}
	for name, fix := range map[string]string{"pre": "-DFIX=", "post": "-DFIX=+7"} {
		run(t, "g++", "-O2", "-g", fix, "-fPIE", "-ffunction-sections", "-fdata-sections", "-c", path("main.cc"), "-o", path("main."+name+".o"))
	}
	run(t, "g++", "-pie", "-Wl,--build-id", path("main.pre.o"), "-L", dir, "-lfirst", "-lsecond", "-Wl,-rpath,"+dir, "-o", path("program"))
	must(t, append([]string{"build", "-o", path("both.so"), "--name", "both"}, args...)...)
	must(t, append([]string{"build", "-o", path("one.so"), "--name", "one"}, args[6:]...)...)

	// The program and a library of a process are further apart than 32-bit references reach.
	refused(t, 4, "far-apart", append([]string{"build"}, append(slices.Clone(args), "-o", path("all.so"), "--pre", path("main.pre.o"), "--post", path("main.post.o"), "--base", path("program"))...)...)

	p := testtarget.Start(t, path("program"))
	is := func(want string) {
		t.Helper()
		if got := p.Ask("5", "^said"); got != "said "+want {
			t.Fatalf("it says %q, want %q", got, want)
		}
	}
	is("50 1050")
	pid := strconv.Itoa(p.PID())
	if r := refused(t, 4, "interposed", "apply", "--pid", pid, path("one.so")); !strings.Contains(r.Stderr, "libfirst.so has a copy") {
		t.Errorf("%v", r)
	}
	if r := apply(t, p.PID(), "--allow-interposed", path("one.so")); !strings.Contains(r.Stdout+r.Stderr, "calls by name go to the copy in libfirst.so") {
		t.Errorf("it does not say that nothing will happen\n%v", r)
	}
	is("50 1050")
	revert(t, p.PID(), "one")
	apply(t, p.PID(), path("both.so"))
	is("57 1057")
	revert(t, p.PID(), "both")
	is("50 1050")
	p.Healthy(t)
}
