package intercept

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test binary stand in for compilers, as hotpatch does.
func TestMain(m *testing.M) {
	if status, called := Main(); called {
		os.Exit(status)
	}
	os.Exit(m.Run())
}

func command(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// watched runs a shell command in a directory with compilers watched, and gives its
// output and exit status.
func watched(t *testing.T, w *Watch, dir, script string) (string, int) {
	t.Helper()
	return watchedIn(t, w, dir, script, 0)
}

func watchedIn(t *testing.T, w *Watch, dir, script string, round int) (string, int) {
	t.Helper()
	env, err := w.Env(os.Environ(), round)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir, cmd.Env = dir, env
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

func newWatch(t *testing.T) (*Watch, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	w, err := New(t.TempDir(), self, os.Getenv("PATH"), tree, "")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"a.c": "#include \"a.h\"\nint a(void) { return A; }\n", "a.h": "#define A 1\n",
		"main.c": "int a(void);\nint main(void) { return a() - 1; }\n", "bad.c": "int x = ;\n", "opts": "-DZ='1 2'\n-c\n"} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return w, tree
}

// TestTransparent: what compilers say and give is the same when they are watched.
func TestTransparent(t *testing.T) {
	t.Parallel()
	w, tree := newWatch(t)
	for _, script := range []string{
		"gcc --version", "gcc -dumpmachine", "gcc -print-search-dirs", "gcc -E a.c", "gcc -S -o - a.c", "gcc -M a.c", "gcc", "gcc -c bad.c", "gcc -c none.c", "gcc -v 2>/dev/null",
		"gcc -c a.c && test -f a.o", "gcc -o prog a.c main.c && ./prog", "gcc -o prog a.c main.c bad.c", "cc -c -o x.o a.c && gcc -o prog x.o main.c && ./prog",
		"gcc @opts a.c main.c && ls *.o", "echo 'int f(void) { return 0; }' | gcc -x c -c -o f.o - && test -f f.o", "gcc -MD -c a.c && cat a.d", "gcc -MMD -MT t -MF q.d -c a.c && cat q.d",
		"gcc -Wp,-MD,w.d -c a.c && cat w.d", "gcc -c -o /dev/null a.c", "clang --version", "clang -Wall -Werror -o prog a.c main.c -lm && ./prog", "x86_64-linux-gnu-gcc -c a.c", "gcc -no-such-option -c a.c",
	} {
		plain := exec.Command("sh", "-c", script)
		plain.Dir = tree
		want, _ := plain.CombinedOutput()
		got, status := watched(t, w, tree, script)
		// Where the messages name the compiler by its path, that is longer.
		clean := func(s string) string {
			return strings.ReplaceAll(strings.ReplaceAll(s, "/usr/bin/", ""), "x86_64-linux-gnu-", "")
		}
		if status != plain.ProcessState.ExitCode() || clean(got) != clean(string(want)) && !strings.Contains(script, "-o prog a.c main.c bad.c") {
			t.Errorf("%s: status %d\n%s\nwant status %d\n%s", script, status, got, plain.ProcessState.ExitCode(), want)
		}
	}
}

// TestRecords: compilations are noted with all that they have read, and can be
// repeated.
func TestRecords(t *testing.T) {
	t.Parallel()
	w, tree := newWatch(t)
	if out, status := watched(t, w, tree, "gcc -O2 -g1 -c -o x.o a.c && gcc -o prog x.o main.c -lm && gcc -E a.c >/dev/null"); status != 0 {
		t.Fatal(out)
	}
	compiles, err := w.Compiles(0)
	if err != nil || len(compiles) != 2 {
		t.Fatalf("%d compilations, %v", len(compiles), err)
	}
	c := compiles[0]
	if c.Source != tree+"/a.c" || c.Output != tree+"/x.o" || c.Dir != tree || c.Assembler() {
		t.Errorf("%+v", c)
	}
	line := " " + strings.Join(c.Args, " ") + " "
	for _, want := range []string{" -O2 ", " -ffunction-sections ", " -fdata-sections ", " -g ", " a.c "} {
		if !strings.Contains(line, want) {
			t.Errorf("%q has no %q", line, want)
		}
	}
	sums := make(map[string]string)
	for _, d := range c.Deps {
		sums[d.Path] = d.Sum
	}
	if sums[tree+"/a.c"] != Sum(tree+"/a.c") || sums[tree+"/a.h"] != Sum(tree+"/a.h") || Sum(tree+"/a.h") == "" {
		t.Errorf("%v", sums)
	}
	links, err := w.Linkings(0)
	if err != nil || len(links) != 1 || links[0].Output != tree+"/prog" || len(links[0].Inputs) != 3 || links[0].Inputs[0] != compiles[1].Output {
		t.Fatalf("%+v, %v", links, err)
	}

	again := filepath.Join(t.TempDir(), "again.o")
	cmd, deps := c.Replay(t.Context(), again)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if Sum(again) != Sum(c.Object) || Sum(again) != Sum(tree+"/x.o") {
		t.Error("compiled once more, it is another object")
	}
	if got := strings.Join(deps(), " "); !strings.Contains(got, tree+"/a.h") {
		t.Errorf("%q", got)
	}
}

// TestStale: where objects of the round before are linked, they may contradict new ones.
func TestStale(t *testing.T) {
	t.Parallel()
	w, tree := newWatch(t)
	if out, status := watched(t, w, tree, "gcc -c a.c main.c && gcc -o prog a.o main.o"); status != 0 {
		t.Fatal(out)
	}
	compiles, err := w.Compiles(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range compiles {
		if err := w.Reuse(c, true); err != nil {
			t.Fatal(err)
		}
	}
	const twice = "rm -f prog; gcc -c a.c main.c b.c && gcc -o prog a.o main.o b.o"
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("b.c", "int a(void) { return 1; }\n")
	if out, status := watchedIn(t, w, tree, twice, 1); status == 0 || !strings.Contains(out, "multiple definition") {
		t.Errorf("nothing is stale: status %d\n%s", status, out)
	}
	write("a.c", "int moved;\n")
	if out, status := watchedIn(t, w, tree, twice+" && test -f prog", 2); status != 0 || out != "" {
		t.Errorf("status %d\n%s", status, out)
	}
	if out, status := watchedIn(t, w, tree, twice+" none.o", 3); status == 0 || !strings.Contains(out, "none.o") {
		t.Errorf("status %d\n%s", status, out)
	}
	write("main.c", "")
	if err := os.Remove(filepath.Join(tree, "a.c")); err != nil {
		t.Fatal(err)
	}
	if out, status := watchedIn(t, w, tree, "gcc -c a.c", 4); status == 0 || !strings.Contains(out, "a.c") {
		t.Errorf("a file that is gone is compiled: status %d\n%s", status, out)
	}
}
