package patchlink

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// rowsC has, in one function, every sort of reference of a C program.
const rowsC = `
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int total;
static int hits = 3;
static __thread int mine = 7;
__thread int ours = 1;
static __attribute__((noinline, noclone)) int scale(int x) { return x * 2 + hits; }
static __attribute__((noinline, noclone)) int other(int x) { return x - 1; }
static int (*op)(int) = scale;
static int (*const ops[2])(int) = {scale, other};
__attribute__((noinline, noclone)) int visible(int x) { return x + total; }
+static int fresh = 1000;
+int fresh_global;
+static __attribute__((noinline, noclone)) int helper(int x) { fresh++; fresh_global += 2; return fresh + fresh_global; }
static int (*last)(int);
static __attribute__((noinline, noclone)) int again(int x)
{
-	int old = last == again ? x : -x;
+	int old = last == again ? x + 1 : -x;
	last = again;
	return old;
}
__attribute__((noinline, noclone)) int compute(int x)
{
	static int calls;
	char text[64];
	calls++;
	total += x;
	hits++;
	mine++;
	ours += 2;
	if (x == 99)
		fprintf(stderr, "%s\n", "ninety-nine");
	errno = x;
	const char *word = "?";
	switch (x) {
	case 0: word = "zero"; break;
	case 1: word = "one"; break;
	case 2: word = strerror(2); break;
	case 3: word = "three"; op = other; break;
	case 4: word = "four"; break;
	case 5: word = op == scale ? "is scale" : "is not scale"; break;
	case 6: hits += 10; break;
	case 7: total += visible(hits); break;
	case 8: word = "eight"; op = ops[x & 1]; break;
	case 9: word = again(x) > 0 ? "again" : "first"; break;
	}
-	snprintf(text, sizeof text, "%s", word);
+	snprintf(text, sizeof text, "new %s %d %ld", word, helper(x), strtol("42", NULL, 10));
	printf("%s: %d calls %d total %d hits %d mine %d ours %d errno %d\n", text, op(x) + visible(1), calls, total, hits, mine, ours, errno);
	return calls;
}
`

const mainC = `
int main(void)
{
	char line[100];
	puts("READY");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		compute(atoi(line));
		fflush(stdout);
	}
	return 0;
}
`

// said is what compute says, as the source has it.
type model struct {
	calls, total, hits, mine, ours, fresh, global int
	other, again                                  bool
}

func (m *model) compute(x int, patched bool) string {
	m.calls++
	m.total += x
	m.hits++
	m.mine++
	m.ours += 2
	word := "?"
	scale := func(x int) int { return x*2 + m.hits }
	switch x {
	case 0:
		word = "zero"
	case 1:
		word = "one"
	case 2:
		word = "No such file or directory"
	case 3:
		word, m.other = "three", true
	case 4:
		word = "four"
	case 5:
		word = map[bool]string{false: "is scale", true: "is not scale"}[m.other]
	case 6:
		m.hits += 10
	case 7:
		m.total += m.hits + m.total
	case 8:
		word, m.other = "eight", false
	case 9: // a function takes its own address: the new code has that of the old one
		word, m.again = map[bool]string{false: "first", true: "again"}[m.again], true
	}
	if patched {
		m.fresh++
		m.global += 2
		word = fmt.Sprintf("new %s %d %d", word, m.fresh+m.global, 42)
	}
	op := scale(x)
	if m.other {
		op = x - 1
	}
	return fmt.Sprintf("%s: %d calls %d total %d hits %d mine %d ours %d errno %d", word, op+1+m.total, m.calls, m.total, m.hits, m.mine, m.ours, x)
}

// A change of a function that uses everything is applied to a running program,
// which keeps its state, and reverted.
func TestRowsC(t *testing.T) {
	t.Parallel()
	for _, compiler := range []string{"gcc", "clang"} {
		for _, flags := range []string{"-O2 -fPIE -pie", "-O2 -fno-pie -no-pie", "-O2 -fPIC -pie", "-O0 -fPIE -pie", "-Os -fno-pie -no-pie", "-O3 -fPIC -fno-plt -pie", "-O0 -fno-pie -no-pie -fcf-protection=full", "-O1 -fPIE -pie -fpatchable-function-entry=16,14"} {
			if testing.Short() && !strings.Contains(flags, "-O2") {
				continue
			}
			t.Run(compiler+" "+flags, func(t *testing.T) {
				t.Parallel()
				c := compileBoth(t, "rows.c", rowsC+mainC, false, compiler, strings.Fields(flags))
				patch, _ := c.patch(t, compare(t, c.pre, c.post, "again", "compute"))
				p := testtarget.Start(t, c.image)
				runModel(t, p, patch)
			})
		}
	}
}

// The same in a library, opened by the dynamic linker or by the program.
func TestRowsLibrary(t *testing.T) {
	t.Parallel()
	const text = "#include <stdio.h>\n#include <stdlib.h>\nint compute(int);\n" + mainC
	for _, compiler := range []string{"gcc", "clang"} {
		for _, flags := range []string{"-O2", "-O0", "-O2 -fvisibility=hidden -DVISIBLE", "-O2 -ftls-model=initial-exec", "-O2 -fno-plt", "-O2 -Wl,-Bsymbolic"} {
			if testing.Short() && flags != "-O2" {
				continue
			}
			t.Run(compiler+" "+flags, func(t *testing.T) {
				t.Parallel()
				source := rowsC
				if strings.Contains(flags, "hidden") {
					source = strings.Replace(source, "__attribute__((noinline, noclone)) int compute", "__attribute__((noinline, noclone, visibility(\"default\"))) int compute", 1)
				}
				c := compileBoth(t, "rows.c", source, true, compiler, append(strings.Fields(flags), "-fPIC"))
				exe := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"main.c": text}, Libs: []string{c.image}})
				patch, _ := c.patch(t, compare(t, c.pre, c.post, "again", "compute"))
				p := testtarget.Start(t, exe)
				runModel(t, p, patch)
			})
		}
	}
}

func runModel(t *testing.T, p *testtarget.Process, patch string) {
	t.Helper()
	m := &model{hits: 3, mine: 7, ours: 1, fresh: 1000}
	say := func(patched bool, xs ...int) {
		t.Helper()
		for _, x := range xs {
			want := m.compute(x, patched)
			if got := p.Ask(fmt.Sprint(x), "errno"); got != want {
				t.Errorf("%d: the program says %q, want %q", x, got, want)
			}
		}
	}
	pid := fmt.Sprint(p.PID())
	do := func(args ...string) {
		t.Helper()
		if r := testtarget.Run(t, args...); r.Exit != 0 {
			t.Fatal(r)
		}
	}
	say(false, 0, 5, 6, 9)
	do("apply", "--pid", pid, patch)
	say(true, 0, 1, 2, 4, 5, 3, 5, 8, 5, 6, 7, 9)
	do("verify", "--pid", pid)
	do("revert", "--pid", pid, "fix")
	say(false, 5, 7, 2, 9)
	do("apply", "--pid", pid, patch)
	say(true, 5, 3, 5)
	do("revert", "--pid", pid, "--all")
	say(false, 5)
	p.Healthy(t)
}

// A library gets new thread-local variables, global and static, a library that it
// did not need before, and functions that exist in two of its objects.
func TestNewThings(t *testing.T) {
	t.Parallel()
	const header = "#include <stdlib.h>\nint a(int);\nint b(int);\n"
	const first = header + `
static __thread int old = 10;
+#include <math.h>
+__thread int fresh_local = 500;
+int common_new(int x);
+int common_new(int x) { return x * 3; }
__attribute__((noinline)) int a(int x)
{
-	return ++old + x;
+	++old;
+	return ++fresh_local * 1000000 + common_new(x) + (int)cbrt(x) + old;
}
`
	const second = header + `
+int common_new(int x);
+extern __thread int fresh_local;
+static __attribute__((noinline)) int b_only(int x) { static int n; return ++n + x; }
__attribute__((noinline)) int b(int x)
{
-	return abs(x - 1);
+	return common_new(x) + b_only(x) + fresh_local + a(x) % 10;
}
`
	for _, compiler := range []string{"gcc", "clang"} {
		t.Run(compiler, func(t *testing.T) {
			t.Parallel()
			flags := []string{"-O2", "-fPIC"}
			one := compileBoth(t, "first.c", first, true, compiler, flags)
			two := compileBoth(t, "second.c", second, true, compiler, flags, "-Wl,-z,lazy", one.image)
			exe := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"main.c": "#include <stdio.h>\n" + header + `
int main(void)
{
	char line[100];
	puts("READY");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		int x = a(atoi(line)), y = b(atoi(line));
		printf("result %d %d\n", x, y);
		fflush(stdout);
	}
	return 0;
}
`}, Libs: []string{one.image, two.image}})
			out := t.TempDir() + "/fix.so"
			inputs := []Input{{compare(t, one.pre, one.post, "a"), openTable(t, one.image)}, {compare(t, two.pre, two.post, "b"), openTable(t, two.image)}}
			report, err := Link(context.Background(), inputs, Meta{Name: "two", Version: 3, Description: "two images", CVEs: []string{"CVE-2026-1"}, Overrides: []string{"struct-layout"}, Builder: "a test", Libraries: []string{"m"}}, out)
			if err != nil {
				t.Fatal(err)
			}
			q := report.Patch
			if len(q.Images) != 2 || len(q.Replacements) != 2 || q.Builder != "a test" || q.Version != 3 || len(q.CVEs) != 1 || len(q.Overrides) != 1 || !slices.Contains(report.Imports, "cbrt") {
				t.Errorf("the patch is %+v, the report %+v", q, report)
			}
			p := testtarget.Start(t, exe)
			pid := fmt.Sprint(p.PID())
			ask := func(x int, want string) {
				t.Helper()
				if got := p.Ask(fmt.Sprint(x), "result"); got != want {
					t.Errorf("the program says %q, want %q", got, want)
				}
			}
			ask(8, "result 19 7")
			if r := testtarget.Run(t, "apply", "--pid", pid, out); r.Exit != 0 {
				t.Fatal(r)
			}
			// a: old 12, fresh 501: 501*10^6 + 24 + 2 + 12; b: 24 + (1+8) + 501 + a's last digit, which counts on: fresh 502 and old 13
			ask(8, fmt.Sprintf("result %d %d", 501000038, 24+9+501+(502000039%10)))
			if r := testtarget.Run(t, "revert", "--pid", pid, "two"); r.Exit != 0 {
				t.Fatal(r)
			}
			ask(8, "result 22 7")
			p.Healthy(t)
		})
	}
}
