package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// features are the files of testdata/targets/features, each an object of its own.
var features = map[bool][]string{
	false: {"data.c", "calls.c", "control.c", "library.c", "threads.c"},
	true:  {"objects.cc", "exceptions.cc", "templates.cc"},
}

// matrix gives all ways of compiling the features. A few of them, spread over the whole,
// have more options of compiler and linker.
func matrix() (list []featureBuild) {
	more := []struct{ flags, link string }{
		{"-fcf-protection=full", ""}, {"-fpatchable-function-entry=16,14", ""}, {"-fno-plt", "-Wl,-z,now"}, {"-fno-omit-frame-pointer", ""},
		{"-fno-semantic-interposition", "-Wl,-Bsymbolic"}, {"-fstack-protector-strong -D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now"},
	}
	for _, level := range []string{"-O2", "-O0", "-O1", "-O3", "-Os"} {
		for _, cxx := range []bool{false, true} {
			for _, kind := range []string{"pie", "no-pie", "library"} {
				for _, compiler := range []string{"gcc", "clang"} {
					b := featureBuild{built: built{cxx, compiler, kind, level, len(list)%4 != 3}}
					if n := len(list); n%5 == 4 && !cxx {
						o := more[n/5%len(more)]
						b.flags, b.link = strings.Fields(o.flags), strings.Fields(o.link)
					}
					list = append(list, b)
				}
			}
		}
	}
	return list
}

// featureBuild is one way of compiling the features.
type featureBuild struct {
	built
	flags, link []string
}

func (b featureBuild) String() string {
	return strings.TrimSpace(b.built.String() + " " + strings.Join(append(slices.Clone(b.flags), b.link...), " "))
}

// compileFeatures makes everything of one cell: the program before the change and after it, the
// image of the former with the code, and pairs of objects by file.
func (b featureBuild) compileFeatures(t *testing.T) (old, fixed, image string, pairs map[string][2]string) {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(testtarget.Root(t), "testdata", "targets", "features")
	for _, name := range []string{"old", "new", "base"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string, args ...string) {
		t.Helper()
		b.compile(t, filepath.Join(dir, name), args...)
	}
	flags := slices.Concat([]string{b.level, "-g", "-w"}, map[string][]string{"pie": {"-fPIE"}, "no-pie": {"-fno-pie"}, "library": {"-fPIC"}}[b.kind], b.flags)
	if b.cxx {
		flags = append(flags, "-std=gnu++17")
	}
	split := append(slices.Clone(flags), "-ffunction-sections", "-fdata-sections")
	pairs = make(map[string][2]string)
	var before, after []string
	for _, name := range features[b.cxx] {
		object := strings.TrimSuffix(name, filepath.Ext(name)) + ".o"
		path := filepath.Join(source, name)
		in("old", append(slices.Clone(split), "-c", path, "-o", object)...)
		in("new", append(slices.Clone(split), "-DFIXED", "-c", path, "-o", object)...)
		if b.strip { // as a distributor has compiled it
			in("base", append(slices.Clone(flags), "-c", path, "-o", object)...)
			before = append(before, filepath.Join(dir, "base", object))
		} else {
			before = append(before, filepath.Join(dir, "old", object))
		}
		after = append(after, filepath.Join(dir, "new", object))
		pairs[name] = [2]string{filepath.Join(dir, "old", object), filepath.Join(dir, "new", object)}
	}
	common := func(name string, more ...string) string {
		return testtarget.Build(t, testtarget.Spec{Sources: []string{"features/" + name}, Compiler: "gcc", Flags: append([]string{"-O1", "-fPIC", "-r"}, more...), Name: name + ".o"})
	}
	outside := common("outside.c")
	main := common("main.c")
	if b.cxx {
		main = common("main.c", "-DCXX")
	}
	link := func(name string, objects []string) string {
		objects = slices.Concat(objects, []string{outside}, []string{"-Wl,--build-id"}, b.link)
		if b.kind != "library" {
			in(name, slices.Concat([]string{"-" + b.kind, "-o", "program"}, objects, []string{main, "-lm"})...)
			return filepath.Join(dir, name, "program")
		}
		in(name, slices.Concat([]string{"-shared", "-Wl,-soname,libfeatures.so", "-o", "libfeatures.so"}, objects, []string{"-lm"})...)
		in(name, "-o", "program", main, "-L.", "-lfeatures", "-Wl,-rpath,"+filepath.Join(dir, name))
		return filepath.Join(dir, name, "program")
	}
	old, fixed = link("old", before), link("new", after)
	image = old
	if b.kind == "library" {
		image = filepath.Join(dir, "old", "libfeatures.so")
	}
	if b.strip {
		run(t, "strip", "-s", image)
	}
	return old, fixed, image, pairs
}

// TestBuildMatrix patches every feature of C and C++ at once, in a running program
// or library, compiled in every way. The patched process must say at each
// moment what the version that is in force would say, with the state that there is.
func TestBuildMatrix(t *testing.T) {
	lengthy(t)
	t.Parallel()
	cells := matrix()
	if os.Getenv("HOTPATCH_TEST_ALL") != "1" {
		var part []featureBuild
		for i := 0; i < len(cells); i += 7 {
			part = append(part, cells[i])
		}
		cells = part
	}
	for _, b := range cells {
		t.Run(b.String(), func(t *testing.T) {
			t.Parallel()
			testtarget.Need(t, b.driver())
			old, fixed, image, pairs := b.compileFeatures(t)
			patch := filepath.Join(t.TempDir(), "fix.so")
			args := []string{"build", "--base", image, "-o", patch, "--name", "fix", "--library", "m"}
			args = append(args, "--objects", filepath.Dir(pairs[features[b.cxx][0]][0])) // for what is new in the program
			for _, name := range features[b.cxx] {
				args = append(args, "--pre", pairs[name][0], "--post", pairs[name][1])
			}
			must(t, args...)
			target, before, after := testtarget.Start(t, old), testtarget.Start(t, old), testtarget.Start(t, fixed)
			memory := testtarget.TextSnapshot(t, target.PID())
			x := 0
			same := func(patched bool) {
				t.Helper()
				for range 9 {
					x++
					question := "all " + strconv.Itoa(x*x+x)
					got, was, is := target.Ask(question, "^all"), before.Ask(question, "^all"), after.Ask(question, "^all")
					want := was
					if patched {
						want = is
					}
					if got != want {
						t.Fatalf("patched: %v, %s: %s", patched, question, differing(got, want))
					}
				}
			}
			same(false)
			apply(t, target.PID(), patch)
			same(true)
			verify(t, target.PID())
			revert(t, target.PID(), "fix")
			same(false)
			unchanged(t, memory, target.PID())
			target.Healthy(t)
		})
	}
}

var answerPart = regexp.MustCompile(`(\w+)=(-?\d+)`)

// differing gives the parts of two answers that are not the same.
func differing(got, want string) string {
	var list []string
	a, b := answerPart.FindAllStringSubmatch(got, -1), answerPart.FindAllStringSubmatch(want, -1)
	for i := range min(len(a), len(b)) {
		if a[i][0] != b[i][0] {
			list = append(list, fmt.Sprintf("%s is %s, want %s", a[i][1], a[i][2], b[i][2]))
		}
	}
	return strings.Join(list, "; ")
}
