package e2e

import (
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// movedProject is a program in three parts: escape.c cuts a text, page.c asks for it, and
// main.c asks both.
func movedProject(flags string) project {
	return project{command: []string{"make"}, program: "served", files: map[string]string{
		"main.c": `#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int page(int x), check(int x), mixed(int x, int y);
int main(void) {
	char line[64];
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin))
		printf("%d -> %d %d %d\n", atoi(line), page(atoi(line)), check(atoi(line)), mixed(atoi(line), 3));
}
`,
		"page.c": `int check(int x);
__attribute__((weak)) int allowed(int x);
static int bound = 1000;
static __attribute__((noinline)) int inner(int x) {
	int n = 3;
	for (int i = 0; i < x % 64; i++)
		n = n * 31 + (i ^ bound);
	return n & 0xff;
}
int page(int x) {
	if (allowed)
		return allowed(x);
	return inner(x) + check(x);
}
`,
		"escape.c": `static int calls;
int limits[2] = {7, 9};
__attribute__((weak)) int check(int x) {
	int n = 11;
	for (int i = 0; i < x % 32; i++)
		n = n * 17 + (i ^ 5);
	return n & 0x3f;
}
int counted(int x) {
	calls += 7;
	for (int i = 0; i < x % 16; i++)
		x = x * 13 + calls;
	return x;
}
int bounded(int x) { return x > limits[0] ? limits[1] : counted(x); }
`,
		"mixed.c": `int mixed(int x, int y) {
	int n = 5;
	for (int i = 0; i < x % 16; i++)
		n = n * 37 + (i ^ y) % 11;
	return n & 0xfff;
}
`,
		"Makefile": "CFLAGS = -g " + flags + "\nserved: main.o page.o escape.o mixed.o\n\tcc " + flags + " -Wl,--build-id -o $@ $^\n",
	}}
}

const checkText = `__attribute__((weak)) int check(int x) {
	int n = 11;
	for (int i = 0; i < x % 32; i++)
		n = n * 17 + (i ^ 5);
	return n & 0x3f;
}
`

// TestMoved: what a change defines in one file and the program has from another is entered
// by way of what the program has, whoever calls it.
func TestMoved(t *testing.T) {
	lengthy(t)
	t.Parallel()
	for _, w := range several([]struct {
		name, flags string
		edits       []string
		want        string // of 20, in place of the old answer
	}{
		{"a function is moved, and changed there", "-O2", []string{"escape.c", checkText, "", "mixed.c", "int mixed", "int check(int x) { return x + 1; }\nint mixed"}, "162 21 2339"},
		{"so is the function that calls it", "-O2 -fPIE", []string{"escape.c", checkText, "", "mixed.c", "int mixed", "int check(int x) { return x + 1; }\nint mixed", "page.c", "return inner(x)", "return 1000 + inner(x)"}, "1162 21 2339"},
		{"a function is moved to a new file", "-O2", []string{"escape.c", checkText, "", "check.c", "", "int check(int x) { return x + 1; }\n", "Makefile", "mixed.o\n", "mixed.o check.o\n"}, "162 21 2339"},
		{"a definition stands in for a weak one", "-O2", []string{"mixed.c", "int mixed", "int check(int x) { return x + 1; }\nint mixed"}, "162 21 2339"},
		{"a static function becomes global, and others use it", "-O2", []string{"page.c", "static __attribute__((noinline)) int inner(int x) {\n", "int inner(int x) {\n\tif (x > 10)\n\t\treturn 1;\n", "mixed.c", "int mixed", "int inner(int x);\nint mixed", "mixed.c", "return n & 0xfff", "return 5000 + inner(x)"}, "58 57 5001"},
		{"so it does where it was inlined", "-O3", []string{"page.c", "static inline int inner(int x) {\n", "int inner(int x) {\n\tif (x > 10)\n\t\treturn 1;\n", "mixed.c", "int mixed", "int inner(int x);\nint mixed", "mixed.c", "return n & 0xfff", "return 5000 + inner(x)"}, "58 57 5001"},
	}, 5) {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			p := movedProject(w.flags)
			if strings.HasSuffix(w.name, "inlined") {
				p = p.with("page.c", strings.Replace(p.files["page.c"], "__attribute__((noinline))", "inline", 1))
			}
			program, image := p.base(t)
			r, patch := p.buildSource(t, image, p.patch(t, w.edits...))
			if r.Exit != 0 {
				t.Fatalf("%v", r)
			}
			q := testtarget.Start(t, program)
			is := func(want string) {
				t.Helper()
				if got := q.Ask("20", "^20 -> "); got != "20 -> "+want {
					t.Errorf("it says %q, want %q\n%v", got, want, r)
				}
			}
			was := testtarget.TextSnapshot(t, q.PID())
			is("198 57 2339")
			apply(t, q.PID(), patch)
			is(w.want)
			revert(t, q.PID(), "fix")
			is("198 57 2339")
			unchanged(t, was, q.PID())
			q.Healthy(t)
		})
	}
}

// TestMovedRefused: what would leave state behind, or callers, is refused.
func TestMovedRefused(t *testing.T) {
	lengthy(t)
	t.Parallel()
	const counted = `int counted(int x) {
	calls += 7;
	for (int i = 0; i < x % 16; i++)
		x = x * 13 + calls;
	return x;
}
`
	p := movedProject("-O2")
	_, image := p.base(t)
	for _, w := range []struct {
		name, code string
		says       []string
		edits      []string
	}{
		{"a function with its variable", "moved-variable", []string{"counted", "calls"},
			[]string{"escape.c", counted, "int counted(int);\n", "mixed.c", "int mixed", "static int calls;\n" + strings.Replace(counted, "13", "14", 1) + "int mixed",
				"escape.c", "int bounded(int x) { return x > limits[0] ? limits[1] : counted(x); }\n", ""}},
		{"what has been undefined, and is referred to", "new-definition", []string{"allowed", "page.c refers to it"},
			[]string{"mixed.c", "int mixed", "int allowed(int x) { return x < 5; }\nint mixed"}},
		{"a function of which the other name stays", "split-alias", []string{"check", "verify"},
			[]string{"mixed.c", "int mixed", "int check(int x) { return x + 1; }\nint mixed"}},
	} {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			p, image := p, image
			if w.code == "split-alias" {
				p = p.with("escape.c", strings.Replace(p.files["escape.c"], "int counted", "int verify(int x) __attribute__((alias(\"check\")));\nint counted", 1))
				_, image = p.base(t)
			}
			r, _ := p.buildSource(t, image, p.patch(t, w.edits...))
			if r.Exit != 4 {
				t.Fatalf("%v", r)
			}
			says(t, r, append(w.says, "["+w.code+"]")...)
		})
	}
}
