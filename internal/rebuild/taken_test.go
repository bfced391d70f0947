package rebuild

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/intercept"
)

// TestLacks: that an object is not in what was linked is said only if it is certain.
func TestLacks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sh := func(command string) {
		t.Helper()
		cmd := exec.Command("sh", "-ec", command)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	for name, text := range map[string]string{
		"main.c":    "int taken(void);\nint main(void) { return taken(); }\n",
		"taken.c":   "int taken(void) { return 0; }\n",
		"left.c":    "static int n;\nint left(void) { return ++n; }\n",
		"other.c":   "int left(void) { return 3; }\nint taken(void) { return left(); }\n",
		"begins.c":  "int begun;\n__attribute__((constructor)) static void begin(void) { begun = 1; }\n",
		"listed.c":  "int listed;\n__attribute__((section(\"list\"), used)) static int *entry = &listed;\n",
		"private.c": "__attribute__((used)) static int none(void) { return 1; }\n",
		"inline.cc": "inline int shared() { return 1; }\nint (*take())() ;\nstatic int (*p)() __attribute__((used)) = shared;\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sh(`for f in *.c *.cc; do gcc -O1 -ffunction-sections -c $f; done
		ar cr lib.a taken.o left.o begins.o listed.o private.o inline.o
		gcc -o plain main.o lib.a
		gcc -s -o bare main.o lib.a
		cp plain local; strip -x local
		gcc -Wl,--gc-sections -o collected main.o taken.o left.o
		gcc -o another main.o other.o`)
	g := newGraph(nil, nil, nil)
	for _, test := range []struct {
		linked, object string
		want           bool
	}{
		{"plain", "left.o", true},
		{"collected", "left.o", true},
		{"plain", "taken.o", false},
		{"bare", "left.o", false},    // no symbol table
		{"local", "left.o", false},   // not all of it
		{"another", "left.o", false}, // another object's, as may be
		{"plain", "begins.o", false}, // nothing refers to what is kept
		{"plain", "listed.o", false},
		{"plain", "private.o", false}, // no names that others know
		{"plain", "inline.o", false},
		{"none", "left.o", false},
	} {
		out := &linked{path: filepath.Join(dir, test.linked)}
		if got := g.lacks(out, &intercept.Compile{Object: filepath.Join(dir, test.object)}); got != test.want {
			t.Errorf("%s lacks %s: %v, want %v", test.linked, strings.TrimSuffix(test.object, ".o"), got, test.want)
		}
	}
}
