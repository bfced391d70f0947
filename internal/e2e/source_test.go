package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// project is a small program with its own way of being built.
type project struct {
	files   map[string]string // "!" in front of a name: executable
	command []string
	program string // what the command makes
	image   string // what has the code; empty: the program
}

// servedFiles is the source of a program that answers numbers with those of answer(),
// declared in a header whose inline function two files use.
func servedFiles() map[string]string {
	return map[string]string{
		"main.c": `#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "bounds.h"

int answer(int x);
int second(int x);

int main(void) {
	char line[64];
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL) {
		int x = atoi(line);
		printf("%d -> %d %d\n", x, answer(x), second(x));
	}
	return 0;
}
`,
		"bounds.h": `/* What is too large. */
#define LARGEST 1000
static inline int bounded(int x) { return x > LARGEST ? LARGEST : x; }
`,
		"answer.c": `#include "bounds.h"
#include <assert.h>
#include <stdio.h>
#include <string.h>
static int calls;
static char last[32];
int answer(int x) {
	calls++;
	snprintf(last, sizeof last, "%d/%d", x, calls);
	if (strchr(last, '/') == NULL) {
		puts("cannot be");
		return -1;
	}
	return bounded(x) * 10 + calls;
}
int unused(int x) {
	assert(x > __LINE__);
	return x;
}
`,
		"second.c": `#include "bounds.h"
#include <stdio.h>
static int most;
int second(int x) {
	if (x > 100000) {
		printf("%d is more than %d\n", x, most);
		most = x;
	}
	return bounded(x + 1);
}
`,
		"README": "A program.\n",
	}
}

// wrongMake has rules without headers: make alone would compile too little.
const wrongMake = `CFLAGS = -O2
served: main.o answer.o second.o
	$(CC) -o $@ $^
`

func (p project) with(name, text string) project {
	files := map[string]string{name: text}
	for n, t := range p.files {
		if n != name {
			files[n] = t
		}
	}
	p.files = files
	return p
}

func (p project) write(t *testing.T, dir string) {
	t.Helper()
	for name, text := range p.files {
		mode := os.FileMode(0o644)
		if plain, executable := strings.CutPrefix(name, "!"); executable {
			name, mode = plain, 0o755
		}
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(text), mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// base builds the program as its distributor would, strips it, and gives the program
// and the image that has the code.
func (p project) base(t *testing.T) (program, image string) {
	t.Helper()
	dir := t.TempDir()
	p.write(t, dir)
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	program = filepath.Join(dir, p.program)
	image = program
	if p.image != "" {
		image = filepath.Join(dir, p.image)
	}
	run(t, "strip", "-s", image)
	return program, image
}

// source writes the tree that hotpatch is given.
func (p project) source(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "source")
	p.write(t, dir)
	return dir
}

// patch writes a patch that replaces texts in files, given as file, old, new. A file that
// becomes empty is deleted.
func (p project) patch(t *testing.T, edits ...string) string {
	t.Helper()
	dir := t.TempDir()
	p.write(t, filepath.Join(dir, "a"))
	p.write(t, filepath.Join(dir, "b"))
	for ; len(edits) > 0; edits = edits[3:] {
		path := filepath.Join(dir, "b", edits[0])
		old, err := os.ReadFile(path)
		if err != nil && edits[1] != "" {
			t.Fatal(err)
		}
		if !strings.Contains(string(old), edits[1]) {
			t.Fatalf("%s has no %q", edits[0], edits[1])
		}
		text := strings.Replace(string(old), edits[1], edits[2], 1)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if text == "" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd := exec.Command("diff", "-ruN", "a", "b")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err == nil || len(out) == 0 {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
	path := filepath.Join(dir, "fix.patch")
	if err := os.WriteFile(path, out, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// treeState gives what there is of a tree to compare.
func treeState(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", `cd "$1" && find . -printf '%p %y %m %s %T@ %l\n' | sort && find . -type f -exec sha256sum {} + | sort`, "sh", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// buildSource runs hotpatch build on the project, and checks that the tree is as it
// was.
func (p project) buildSource(t *testing.T, image, patch string, more ...string) (r testtarget.Result, out string) {
	t.Helper()
	testtarget.Need(t, "make")
	testtarget.Need(t, "patch")
	tree := p.source(t)
	before := treeState(t, tree)
	out = filepath.Join(t.TempDir(), "fix.so")
	args := append([]string{"build", "--source", tree, "--patch", patch, "-o", out, "--name", "fix"}, more...)
	if image != "" {
		args = append(args, "--base", image)
	}
	r = testtarget.Run(t, append(append(args, "--"), p.command...)...)
	if after := treeState(t, tree); after != before {
		t.Fatalf("the source tree has changed:\n%s\nwas\n%s\n%v", after, before, r)
	}
	return r, out
}

func makeProject() project {
	return project{files: servedFiles(), command: []string{"make", "-j2"}, program: "served"}.with("Makefile", wrongMake)
}

// fixed makes a patch, and applies it to the running program, whose answers to 5000
// are then those. It was called before, once.
func (p project) fixed(t *testing.T, before, after string, edits ...string) testtarget.Result {
	t.Helper()
	program, image := p.base(t)
	r, patch := p.buildSource(t, image, p.patch(t, edits...))
	if r.Exit != 0 {
		t.Fatalf("it should exit with 0\n%v", r)
	}
	q := testtarget.Start(t, program)
	is := func(want string) {
		t.Helper()
		if got := q.Ask("5000", `^5000 -> `); got != "5000 -> "+want {
			t.Fatalf("it says %q, want %q\n%v", got, want, r)
		}
	}
	was := testtarget.TextSnapshot(t, q.PID())
	is(fmt.Sprintf(before, 1))
	apply(t, q.PID(), patch)
	is(fmt.Sprintf(after, 2))
	revert(t, q.PID(), "fix")
	is(fmt.Sprintf(before, 3))
	verify(t, q.PID())
	unchanged(t, was, q.PID())
	q.Healthy(t)
	return r
}

// says ends the test unless the answer has all texts.
func says(t *testing.T, r testtarget.Result, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(r.Stdout+r.Stderr, text) {
			t.Errorf("it does not say %q\n%v", text, r)
		}
	}
}

// TestSource: patches are made from changes of source, with the project's own build
// command, and do in the running process what the new source does.
func TestSource(t *testing.T) {
	lengthy(t)
	t.Parallel()
	t.Run("one file", func(t *testing.T) {
		t.Parallel()
		r := makeProject().fixed(t, "1000%d 1000", "2000%d 1000", "answer.c", "bounded(x) * 10", "bounded(x) * 20")
		says(t, r, "compiled again answer.c (answer.c)", "replaces answer (served)")
		if strings.Contains(r.Stdout, "unused") {
			t.Errorf("moved lines are taken for a change\n%v", r)
		}
	})
	t.Run("a header of which make does not know", func(t *testing.T) {
		t.Parallel()
		r := makeProject().fixed(t, "1000%d 1000", "500%d 500", "bounds.h", "LARGEST 1000", "LARGEST 500")
		says(t, r, "compiled again answer.c (bounds.h)", "compiled again second.c (bounds.h)", "compiled again main.c (bounds.h): its code is the same")
	})
	t.Run("lines move", func(t *testing.T) {
		t.Parallel()
		r := makeProject().fixed(t, "1000%d 1000", "999%d 1000", "answer.c", "\tcalls++;\n", "\tcalls++;\n\tif (x == 5000)\n\t\tx = 999;\n")
		if strings.Contains(r.Stdout, "unused") {
			t.Errorf("a function that has only moved is replaced\n%v", r)
		}
	})
	t.Run("static variables of one name", func(t *testing.T) {
		t.Parallel()
		// Each is known by its line if there is no other like it.
		first, second := "\t{\n\t\tstatic int n; // once\n\t\tn += 1;\n\t\tr += n;\n\t}\n", "\t{\n\t\tstatic int n; // a hundred times\n\t\tn += 100;\n\t\tr += n * 1000;\n\t}\n"
		begin, end := "#include \"bounds.h\"\n#include <stdio.h>\nint answer(int x) {\n\tint r = 0;\n\tif (bounded(x) < -12345)\n\t\tputs(\"much less than that\");\n", "\treturn r;\n}\n"
		p := makeProject().with("answer.c", begin+first+second+end)
		change := func(text string) (*testtarget.Process, testtarget.Result, string) {
			t.Helper()
			program, image := p.base(t)
			r, patch := p.buildSource(t, image, p.patch(t, "answer.c", p.files["answer.c"], text))
			return testtarget.Start(t, program), r, patch
		}
		q, r, patch := change(begin + "\tif (x < 0)\n\t\treturn 0;\n\tr += 7;\n" + first + second + end)
		if r.Exit != 0 {
			t.Fatalf("%v", r)
		}
		is := func(want string) {
			t.Helper()
			if got := q.Ask("5000", "^5000 -> "); got != "5000 -> "+want {
				t.Errorf("it says %q, want %q", got, want)
			}
		}
		is("100001 1000")
		apply(t, q.PID(), patch)
		is("200009 1000")
		revert(t, q.PID(), "fix")
		is("300003 1000")
		q.Healthy(t)
		q, r, patch = change(begin + "\tr += 5;\n" + second + first + end) // the blocks change places
		if r.Exit != 0 {
			t.Fatalf("%v", r)
		}
		is("100001 1000")
		apply(t, q.PID(), patch)
		is("200007 1000")
		q.Healthy(t)
		alike := func(s string) string {
			return strings.NewReplacer(" // once", "", " // a hundred times", "").Replace(s)
		}
		p = p.with("answer.c", alike(p.files["answer.c"]))
		if _, r, _ := change(alike(begin + "\tr += 5;\n" + second + first + end)); r.Exit != 4 || !strings.Contains(r.Stderr, "[ambiguous-static]") {
			t.Errorf("%v", r)
		}
	})
	t.Run("new function and header", func(t *testing.T) {
		t.Parallel()
		makeProject().fixed(t, "1000%d 1000", "7%d 1000", "answer.c", "static int calls;", "#include \"more.h\"\nstatic int calls;",
			"answer.c", "bounded(x) * 10", "more(x) * 10", "more.h", "", "static __attribute__((noinline)) int more(int x) { return x > 7 ? 0 : 1; }\n",
			"answer.c", "+ calls;", "+ calls + 70;")
	})
	for _, flags := range several([]string{"-O2", "-O2 -fno-pie", "-O0"}, 2) {
		t.Run("first use of a library's variable "+flags, func(t *testing.T) {
			t.Parallel()
			link := map[bool]string{true: " -no-pie"}[strings.Contains(flags, "no-pie")]
			p := makeProject().with("Makefile", "CFLAGS = "+flags+"\nserved: main.o answer.o second.o\n\t$(CC)"+link+" -o $@ $^\n")
			r := p.fixed(t, "1000%d 1000", "2000%d 1000", "answer.c", "\tcalls++;", "\tcalls++;\n\tif (x == 5000)\n\t\tfprintf(stderr, \"large\\n\");", "answer.c", "bounded(x) * 10", "bounded(x) * 20")
			says(t, r, "the dynamic linker finds", "stderr")
			if strings.Contains(r.Stdout, "unused") {
				t.Errorf("a function is replaced that differs in how it was compiled only\n%v", r)
			}
		})
	}
	t.Run("a function that is too short", func(t *testing.T) {
		t.Parallel()
		p := makeProject().with("second.c", "int second(int x) { return x; }\n").with("Makefile", "CFLAGS = -Os\nserved: main.o answer.o second.o\n\t$(CC) -o $@ $^\n")
		program, image := p.base(t)
		r, patch := p.buildSource(t, image, p.patch(t, "second.c", "return x;", "return x + 1;"))
		if r.Exit != 0 {
			t.Fatalf("%v", r)
		}
		says(t, r, "[no-entry]", "second")
		q := testtarget.Start(t, program)
		refused(t, 4, "short-function", "apply", "--pid", strconv.Itoa(q.PID()), patch)
		q.Healthy(t)
	})
	// It has a variable of its own, uses the program's, and the program has no symbols.
	const third = "#include <stdio.h>\n#include \"bounds.h\"\nint thirds;\nstatic int so_far;\nextern int second(int);\nint third(int x) {\n\tif (x < 0)\n\t\tprintf(\"%d\", so_far);\n\tso_far += ++thirds;\n\treturn bounded(x) * 3 + so_far * 100000 + second(x);\n}\n"
	use := []string{"third.c", "", third, "answer.c", "static int calls;", "int third(int x);\nextern int thirds;\nstatic int calls;", "answer.c", "bounded(x) * 10", "third(x) * 10 + thirds * 1000"}
	for _, other := range several([]struct{ name, make, old, now string }{
		{"and one command for all", "served: main.c answer.c second.c\n\t$(CC) -O2 -o $@ $^\n", "second.c", "second.c third.c"},
		{"compiled by itself", wrongMake, "second.o", "second.o third.o"},
		{"that a wildcard finds", "served: $(patsubst %.c,%.o,$(wildcard *.c))\n\t$(CC) -O2 -o $@ $^\n", "", ""},
	}, 1) {
		t.Run("another file, "+other.name, func(t *testing.T) {
			t.Parallel()
			edits := use
			if other.old != "" {
				edits = append([]string{"Makefile", other.old, other.now}, use...)
			}
			r := makeProject().with("Makefile", other.make).fixed(t, "1000%d 1000", "104100%d 1000", edits...)
			says(t, r, "compiled third.c, which is new", "compiled again answer.c", "replaces answer (served)")
		})
	}
	t.Run("a library that is linked now", func(t *testing.T) {
		t.Parallel()
		r := makeProject().fixed(t, "1000%d 1000", "1700%d 1000", "Makefile", "-o $@ $^", "-o $@ $^ -lm", "answer.c", "static int calls;", "double cbrt(double x);\nstatic int calls;", "answer.c", "bounded(x) * 10", "(int)cbrt(x) * 1000")
		says(t, r, "needs m in addition", "the dynamic linker finds cbrt")
	})
	t.Run("a file that is renamed", func(t *testing.T) {
		t.Parallel()
		p := makeProject()
		text := p.files["answer.c"]
		r := p.fixed(t, "1000%d 1000", "2000%d 1000", "Makefile", "answer.o", "reply.o", "answer.c", text, "", "reply.c", "", strings.Replace(text, "static int calls;", "// How often.\nstatic int calls;", 1),
			"reply.c", "bounded(x) * 10", "bounded(x) * 20")
		says(t, r, "compiled again reply.c (answer.c, reply.c)", "replaces answer (served)")
	})
	t.Run("new header that is found before another", func(t *testing.T) {
		t.Parallel()
		p := makeProject().with("answer.c", strings.Replace(servedFiles()["answer.c"], `"bounds.h"`, "<bounds.h>", 1)).
			with("Makefile", "served: main.o answer.o second.o\n\t$(CC) -o $@ $^\n%.o: %.c\n\t$(CC) -O2 -Ifirst -I. -c $<\n").with("first/none.h", "")
		r := p.fixed(t, "1000%d 1000", "500%d 1000", "first/bounds.h", "", "static inline int bounded(int x) { return x > 500 ? 500 : x; }\n")
		says(t, r, "compiled again answer.c (first/bounds.h)")
	})
	t.Run("new header that is asked for", func(t *testing.T) {
		t.Parallel()
		p := makeProject()
		p = p.with("answer.c", "#if __has_include(\"local.h\")\n#include \"local.h\"\n#else\n#define FACTOR 10\n#endif\n"+strings.Replace(p.files["answer.c"], "bounded(x) * 10", "bounded(x) * FACTOR", 1))
		p.fixed(t, "1000%d 1000", "3000%d 1000", "local.h", "", "#define FACTOR 30\n")
	})
	t.Run("one output with two sets of options", func(t *testing.T) {
		t.Parallel()
		p := makeProject().with("Makefile", "served: other main.o second.o\n\t$(CC) -O2 -c answer.c\n\t$(CC) -o $@ main.o answer.o second.o\n"+
			"other: main.o second.o\n\t$(CC) -O2 -DOTHER -c answer.c\n\t$(CC) -o $@ main.o answer.o second.o\n%.o: %.c\n\t$(CC) -O2 -c $<\n")
		p.fixed(t, "1000%d 1000", "2000%d 1000", "answer.c", "bounded(x) * 10", "bounded(x) * 20")
	})
	t.Run("compiled and linked at once", func(t *testing.T) {
		t.Parallel()
		p := makeProject().with("Makefile", "served: main.c answer.c second.c\n\t$(CC) -O2 -MD -o $@ $^ -lm\n")
		p.fixed(t, "1000%d 1000", "2000%d 1000", "answer.c", "bounded(x) * 10", "bounded(x) * 20")
	})
	t.Run("library and archive and two objects of each source", func(t *testing.T) {
		t.Parallel()
		p := makeProject().with("Makefile", `served: main.o libserved.so
	$(CC) -o $@ main.o -L. -lserved -Wl,-rpath,$(CURDIR)
libserved.so: .libs/answer.o .libs/second.o
	ar cr .libs/libconv.a .libs/second.o
	$(CC) -shared -Wl,-soname,libserved.so -o $@ .libs/answer.o -Wl,--whole-archive .libs/libconv.a -Wl,--no-whole-archive
.libs/%.o: %.c
	mkdir -p .libs
	$(CC) -O2 -fPIC -DPIC -c -o $*.o $<
	mv $*.o $@
	$(CC) -O2 -c -o $*.o $<
`)
		p.image = "libserved.so"
		r := p.fixed(t, "1000%d 1000", "500%d 500", "bounds.h", "LARGEST 1000", "LARGEST 500")
		says(t, r, "replaces second (libserved.so)")
	})
	t.Run("flags of its own in a directory", func(t *testing.T) {
		t.Parallel()
		p := makeProject().with("Makefile", "served: main.o sub/libsub.a\n\t$(CC) -o $@ main.o sub/libsub.a\nmain.o: main.c\n\t$(CC) -O2 -c main.c\nsub/libsub.a:\n\t$(MAKE) -C sub CFLAGS=-O1\n").
			with("sub/Makefile", "libsub.a: answer.o second.o\n\tar rcs $@ $^\n%.o: ../%.c ; gcc @flags $(CFLAGS) -c -o $@ $<\n").with("sub/flags", "-DSUB='1 2'\n-fno-strict-aliasing")
		p.fixed(t, "1000%d 1000", "500%d 500", "bounds.h", "LARGEST 1000", "LARGEST 500")
	})
	t.Run("generated source", func(t *testing.T) {
		t.Parallel()
		p := makeProject().with("Makefile", "served: main.o answer.o second.o\n\t$(CC) -o $@ $^\nmain.o answer.o second.o: bounds.h\nbounds.h: bounds.in gen.sh\n\tsh gen.sh <bounds.in >$@\n%.o: %.c\n\t$(CC) -O2 -c $<\n").
			with("gen.sh", "sed s/@LARGEST@/1000/g\n").with("bounds.in", "static inline int bounded(int x) { return x > @LARGEST@ ? @LARGEST@ : x; }\n")
		delete(p.files, "bounds.h")
		r := p.fixed(t, "1000%d 1000", "500%d 500", "gen.sh", "1000", "500")
		says(t, r, "building once more", "compiled again second.c (bounds.h)")
	})
	t.Run("tool that makes a source", func(t *testing.T) {
		t.Parallel()
		p := makeProject().with("Makefile", "served: main.o answer.o second.o\n\t$(CC) -o $@ $^\nmain.o answer.o second.o: bounds.h\nbounds.h: gen\n\t./gen >$@\ngen: gen.c\n\t$(CC) -o $@ $<\n%.o: %.c\n\t$(CC) -O2 -c $<\n").
			with("gen.c", "#include <stdio.h>\nint main(void) { printf(\"static inline int bounded(int x) { return x > %d ? %d : x; }\\n\", 1000, 1000); return 0; }\n")
		delete(p.files, "bounds.h")
		r := p.fixed(t, "1000%d 1000", "500%d 500", "gen.c", "1000, 1000", "500, 500")
		says(t, r, "building once more", "compiled again answer.c (bounds.h)")
	})
	t.Run("launcher", func(t *testing.T) {
		t.Parallel()
		testtarget.Need(t, "ccache")
		p := makeProject()
		p.command = []string{"make", "CC=ccache gcc"}
		p.fixed(t, "1000%d 1000", "2000%d 1000", "answer.c", "bounded(x) * 10", "bounded(x) * 20")
	})
	t.Run("clang", func(t *testing.T) {
		t.Parallel()
		testtarget.Need(t, "clang")
		p := makeProject()
		p.command = []string{"make", "CC=clang"}
		p.fixed(t, "1000%d 1000", "2000%d 1000", "answer.c", "bounded(x) * 10", "bounded(x) * 20")
	})
	t.Run("CMake", func(t *testing.T) {
		t.Parallel()
		testtarget.Need(t, "cmake")
		p := makeProject().with("CMakeLists.txt", "cmake_minimum_required(VERSION 3.10)\nproject(served C)\nadd_library(parts STATIC answer.c second.c)\nadd_executable(served main.c)\ntarget_link_libraries(served parts)\n")
		p.command = []string{"sh", "-c", "cmake -DCMAKE_BUILD_TYPE=RelWithDebInfo -B out . && cmake --build out -j2"}
		p.program = "out/served"
		p.fixed(t, "1000%d 1000", "500%d 500", "bounds.h", "LARGEST 1000", "LARGEST 500")
	})
}

// archiveProject links an archive of which the program needs one member, and a library that has a
// file of the program as well.
func archiveProject() project {
	return makeProject().with("rare.c", "static int calls;\nint rare(int x) {\n\tcalls += x;\n\treturn calls / 5000;\n}\n").
		with("Makefile", "CFLAGS = -O2 -fPIC\nall: served libother.so\nserved: main.o answer.o libparts.a\n\t$(CC) -o $@ main.o answer.o -L. -lparts\n"+
			"libparts.a: rare.o second.o\n\tar rcs $@ $^\nlibother.so: answer.o\n\t$(CC) -shared -o $@ $^\n")
}

// TestSourceArchive: what the linker has not taken into the base is no part of it.
func TestSourceArchive(t *testing.T) {
	lengthy(t)
	t.Parallel()
	t.Run("a member that is not in the program", func(t *testing.T) {
		t.Parallel()
		r := archiveProject().fixed(t, "1000%d 1000", "2000%d 1000", "rare.c", "/ 5000", "/ 1000", "answer.c", "bounded(x) * 10", "bounded(x) * 20")
		says(t, r, "left out: rare.c, of which the linker has taken nothing into served", "answer.c: it is also linked into libother.so", "[also-linked]")
	})
	t.Run("a member that is needed now", func(t *testing.T) {
		t.Parallel()
		r := archiveProject().fixed(t, "1000%d 1000", "70%d 1000", "rare.c", "calls += x", "calls += x + second(1) + 34998", "rare.c", "static", "int second(int x);\nstatic",
			"answer.c", "static int calls;", "int rare(int x);\nstatic int calls;", "answer.c", "return bounded(x) * 10 +", "return rare(x + 0) * 87 + 4 +")
		says(t, r, "brings rare.c, of which the base has nothing yet")
	})
	t.Run("nothing else", func(t *testing.T) {
		t.Parallel()
		p := archiveProject()
		_, image := p.base(t)
		r, _ := p.buildSource(t, image, p.patch(t, "rare.c", "/ 5000", "/ 1000"))
		if r.Exit != 7 {
			t.Errorf("it should exit with 7\n%v", r)
		}
		says(t, r, "the linker has taken nothing of rare.c", "[nothing-to-patch]")
	})
}

// TestSourceOfProcess: the bases can be those that a process runs, also if the program
// file is no longer there.
func TestSourceOfProcess(t *testing.T) {
	t.Parallel()
	p := makeProject()
	program, _ := p.base(t)
	q := testtarget.Start(t, program)
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	r, patch := p.buildSource(t, "", p.patch(t, "answer.c", "bounded(x) * 10", "bounded(x) * 20"), "--pid", strconv.Itoa(q.PID()))
	if r.Exit != 0 {
		t.Fatalf("%v", r)
	}
	apply(t, q.PID(), patch)
	if got := q.Ask("5000", "^5000 -> "); got != "5000 -> 20001 1000" {
		t.Errorf("it says %q", got)
	}
	q.Healthy(t)
}

// TestSourceNothing: what makes no difference is said to be nothing to patch, and why.
func TestSourceNothing(t *testing.T) {
	lengthy(t)
	t.Parallel()
	p := makeProject().with("tool.c", "int main(void) { return 0; }\n").with("Makefile", "all: served tool\ntool: tool.c\n"+wrongMake).with("left.c", "int left(void) { return 1; }\n")
	_, image := p.base(t)
	for name, test := range map[string]struct{ file, from, to, why string }{
		"a comment":                     {"answer.c", "static int calls;", "/* So often. */\nstatic int calls;", "makes no difference"},
		"a file that nothing reads":     {"README", "A program.", "A fixed program.", "README"},
		"a source that is not compiled": {"left.c", "return 1", "return 2", "left.c"},
		"an option of the linker":       {"Makefile", "-o $@ $^", "-Wl,--wrap=rand -o $@ $^", "but served is linked with -Wl,--wrap=rand after it"},
		"another program":               {"tool.c", "return 0", "return 1", "tool"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, out := p.buildSource(t, image, p.patch(t, test.file, test.from, test.to))
			if r.Exit != 7 || !strings.Contains(r.Stderr, "[nothing-to-patch]") || !strings.Contains(r.Stderr, test.why) {
				t.Errorf("%v", r)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("there is a patch")
			}
		})
	}
}

// TestSourceFixed: a base that has the fix already is told from one of another source.
func TestSourceFixed(t *testing.T) {
	lengthy(t)
	t.Parallel()
	p := makeProject()
	edits := []string{"answer.c", "* 10", "* 20"}
	_, image := p.with("answer.c", strings.Replace(p.files["answer.c"], "* 10", "* 20", 1)).base(t)
	if r, _ := p.buildSource(t, image, p.patch(t, edits...)); r.Exit != 7 || !strings.Contains(r.Stderr, "[already-fixed]") {
		t.Errorf("%v", r)
	}
	_, image = p.with("second.c", strings.Replace(p.files["second.c"], "x > 100000", "x > 200000", 1)).base(t)
	if r, _ := p.buildSource(t, image, p.patch(t, "second.c", "x > 100000", "x > 200000")); r.Exit != 7 || !strings.Contains(r.Stderr, "[already-fixed]") {
		t.Errorf("%v", r)
	}
	_, image = p.with("answer.c", strings.Replace(p.files["answer.c"], "* 10", "* 30", 1)).base(t)
	if r, _ := p.buildSource(t, image, p.patch(t, edits...)); r.Exit != 4 || !strings.Contains(r.Stderr, "[code-differs]") {
		t.Errorf("%v", r)
	}
}

// TestSourceRefused: what cannot be built or is not certain is refused by name.
func TestSourceRefused(t *testing.T) {
	lengthy(t)
	t.Parallel()
	p := makeProject().with("asm.S", ".globl two\n.type two, @function\ntwo:\n\tmov $2, %eax\n\tret\n.size two, .-two\n.section .note.GNU-stack,\"\"\n")
	_, image := p.base(t)
	withMake := func(text string) project { return p.with("Makefile", text) }
	plain := []string{"answer.c", "* 10", "* 20"}
	assembled := p.with("second.c", "__asm__(\".data\\nblob: .incbin \\\"data.bin\\\"\\n.text\\n\");\nextern char blob[];\nint second(int x) { return x + blob[0]; }\n").with("data.bin", "3\n")
	for name, test := range map[string]struct {
		p     project
		edits []string
		exit  int
		code  string
	}{
		"a hunk that does not fit":                      {p, nil, 4, "hunk-failed"},
		"a build that fails":                            {withMake("served: ; false"), plain, 1, "build-failed"},
		"a change that does not compile":                {p, []string{"answer.c", "* 10", "* ) 10"}, 1, "compile-failed"},
		"no compiler on PATH":                           {withMake("served: ; /usr/bin/gcc -O2 -o served main.c answer.c second.c"), plain, 4, "nothing-compiled"},
		"one compiler not on PATH":                      {withMake("served: main.o second.o\n\t/usr/bin/gcc -O2 -c answer.c\n\tgcc -o served main.o answer.o second.o"), plain, 4, "unrecorded-compile"},
		"linked in a way that was not seen":             {withMake("served: main.o second.o\n\t/usr/bin/gcc -O2 -c answer.c\n\t/usr/bin/gcc -o served main.o answer.o second.o"), plain, 4, "unrecorded-compile"},
		"assembler":                                     {withMake("served: main.o answer.o second.o asm.o\n\tgcc -o served $^"), []string{"asm.S", "$2", "$3"}, 4, "changed-assembler"},
		"other options":                                 {p, []string{"Makefile", "-O2", "-O2 -DOTHER"}, 4, "changed-flags"},
		"a file that is removed":                        {p.with("third.c", "int third;\n").with("Makefile", "served: main.o answer.o second.o third.o\n\t$(CC) -o $@ $^\n"), []string{"Makefile", " third.o", "", "third.c", "int third;\n", ""}, 4, "removed-source-file"},
		"a function that nothing has":                   {p, []string{"answer.c", "static int calls;", "int nothing_has(int x);\nstatic int calls;", "answer.c", "* 10", "* nothing_has(10)"}, 4, "unknown-import"},
		"another file in assembler":                     {p, []string{"Makefile", "second.o", "second.o third.o", "third.S", "", ".globl third\nthird: ret\n.section .note.GNU-stack,\"\"\n"}, 4, "new-source-file"},
		"folded by the linker, and stripped":            {withMake("served: main.o answer.o second.o\n\tgcc -fuse-ld=gold -Wl,--icf=all -o served $^\n%.o: %.c\n\tgcc -O2 -ffunction-sections -c $<\n"), plain, 4, "folded-functions"},
		"another file with a constructor":               {p, []string{"Makefile", "second.o", "second.o third.o", "third.c", "", "int third;\n__attribute__((constructor)) static void begin(void) { third = 3; }\n"}, 4, "changed-constructor"},
		"a file that has changed since it was compiled": {withMake("served: main.o answer.o second.o\n\techo '/* */' >>bounds.h\n\tgcc -o served main.o answer.o second.o"), plain, 4, "unstable-input"},
		"a file that the assembler includes":            {assembled, []string{"data.bin", "3", "4"}, 4, "changed-data"},
		"a source from standard input":                  {withMake("served: main.o second.o\n\tcat answer.c | gcc -O2 -x c -c -o answer.o -\n\tgcc -o served main.o answer.o second.o"), plain, 4, "source-from-stdin"},
		"nothing in the patch":                          {p, []string{}, 7, "empty-patch"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var patch string
			switch {
			case test.edits == nil:
				patch = p.with("answer.c", "another file\n").patch(t, "answer.c", "another", "no other")
			case len(test.edits) == 0:
				patch = filepath.Join(t.TempDir(), "empty.patch")
				if err := os.WriteFile(patch, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			default:
				patch = test.p.patch(t, test.edits...)
			}
			r, out := test.p.buildSource(t, image, patch)
			if r.Exit != test.exit || !strings.Contains(r.Stderr, "["+test.code+"]") {
				t.Errorf("it should exit with %d and say [%s]\n%v", test.exit, test.code, r)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("there is a patch")
			}
		})
	}
}

// TestSourceNowhere: that the patch cannot be written is said before anything is built.
func TestSourceNowhere(t *testing.T) {
	t.Parallel()
	p := makeProject()
	tree, dir := p.source(t), t.TempDir()
	mark := filepath.Join(dir, "mark")
	for _, out := range []string{filepath.Join(dir, "none", "fix.so"), dir} {
		r := refused(t, 1, "patch-not-written", "build", "--source", tree, "--patch", p.patch(t, "answer.c", "* 10", "* 20"), "--base", testtarget.Hotpatch(t), "-o", out, "--", "sh", "-c", "touch "+mark)
		if _, err := os.Stat(mark); err == nil {
			t.Errorf("the build has run\n%v", r)
		}
	}
}

// TestSourceWithoutNamespace: where no mount namespace can be had, a copy at another
// place is built; a tree that names its own path is then refused.
func TestSourceWithoutNamespace(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "unshare")
	p := makeProject()
	_, image := p.base(t)
	patch := p.patch(t, "answer.c", "* 10", "* 20")
	for name, test := range map[string]struct {
		exit int
		code string
	}{"clean": {0, ""}, "names its path": {5, "[tree-path]"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree, out := p.source(t), filepath.Join(t.TempDir(), "fix.so")
			if test.exit != 0 {
				if err := os.WriteFile(filepath.Join(tree, "config.status"), []byte("srcdir="+tree+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			before := treeState(t, tree)
			cmd := exec.Command("unshare", "--user", "--map-root-user", "sh", "-c", `echo 0 >/proc/sys/user/max_mnt_namespaces && exec "$@"`, "sh",
				testtarget.Hotpatch(t), "build", "--source", tree, "--patch", patch, "--base", image, "-o", out, "--", "make")
			text, _ := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != test.exit || !strings.Contains(string(text), test.code) || !strings.Contains(string(text), "namespace") {
				t.Errorf("exit status %d, want %d and %q\n%s", got, test.exit, test.code, text)
			}
			if _, err := os.Stat(out); (err == nil) != (test.exit == 0) {
				t.Errorf("the patch: %v", err)
			}
			if treeState(t, tree) != before {
				t.Error("the source tree has changed")
			}
		})
	}
}
