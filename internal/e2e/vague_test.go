package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// sharedFiles is the source of a program in two parts that have a header's inline
// variables and functions in common. first.cc sets and uses all of them, second.cc none.
func sharedFiles() map[string]string {
	return map[string]string{
		"shared.h": `#pragma once
struct Config {
	int limit = 1;
	static Config &instance() {
		static Config c;
		return c;
	}
};
inline int level = 7;
inline int &counter() {
	static int n = 50;
	return n;
}
template <class T> struct Table { static T last; };
template <class T> T Table<T>::last = T(9);
inline int handler(int x) { return x % 7 == 3 ? x * 31 + 17 : (x ^ 0x12345) * 3 - 99999; }
inline thread_local int mine = 4;
extern int (*volatile registered)(int);
int first(int x);
int second(int x);
`,
		"main.cc": `#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "shared.h"
int main() {
	char line[64];
	setvbuf(stdout, nullptr, _IOLBF, 0);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != nullptr) {
		int x = atoi(line);
		int a = first(x);
		printf("%d -> %d %d\n", x, a, second(x));
	}
}
`,
		"first.cc": `#include "shared.h"
int (*volatile registered)(int) = handler;
int first(int x) {
	Config::instance().limit = 100;
	level = 200;
	counter() = 300;
	Table<int>::last = 400;
	mine = 500;
	if (x > 100000)
		return registered(x);
	return x + Config::instance().limit + level + counter() + Table<int>::last;
}
`,
		"second.cc": `#include "shared.h"
#include <stdio.h>
static int mixed(int x) {
	int s = 3;
	for (int i = 0; i < x % 50; i++)
		s = s * 37 + (i ^ x) % 11;
	return s;
}
int second(int x) {
	if (x < 0)
		printf("%d is mixed to %d\n", x, mixed(x));
	return x * 17 + 3;
}
`,
	}
}

// shared is a way of building that program.
type shared struct {
	name  string
	make  string
	image string   // the base, and what is stripped; empty: the program
	strip string   // strip's option, or ""
	more  []string // other bases
}

// TestVague: what new code is the first of its file to use, and other files of the program
// have, is the program's: inline variables, static variables of inline functions and of
// templates, and the address of an inline function.
func TestVague(t *testing.T) {
	t.Parallel()
	program := func(compiler, flags string) string {
		return "CXXFLAGS = -std=c++17 " + flags + "\nserved: main.o first.o second.o\n\t" + compiler + " " + flags + " -Wl,--build-id -o $@ $^\n%.o: %.cc\n\t" + compiler + " $(CXXFLAGS) -c $<\n"
	}
	library := "served: main.o first.o libsecond.so\n\tg++ -o $@ main.o first.o -L. -lsecond -Wl,-rpath,'$$ORIGIN'\n" +
		"libsecond.so: second.o third.o\n\tg++ -shared -Wl,--build-id -o $@ $^\n%.o: %.cc\n\tg++ -std=c++17 -O2 -fPIC -c $<\n"
	third := "#include \"shared.h\"\nint third(int x) {\n\tConfig::instance().limit++;\n\tlevel++;\n\tcounter()++;\n\tTable<int>::last++;\n\tregistered = x ? handler : nullptr;\n\treturn x;\n}\n"
	const fix = "x * 17 + 3 + Config::instance().limit + level + counter() + Table<int>::last + 10000 * (registered == handler)"
	all := []shared{
		{name: "stripped", make: program("g++", "-O2"), strip: "-s"},
		{name: "a library", make: library, image: "libsecond.so", strip: "-s", more: []string{"served"}},
		{name: "clang", make: program("clang++", "-O2"), strip: "-s"},
		{name: "with symbols", make: program("g++", "-O2")},
		{name: "not optimised", make: program("g++", "-O0"), strip: "-s"},
		{name: "exported", make: program("g++", "-O2 -rdynamic"), strip: "-s"},
		{name: "at a fixed address", make: program("g++", "-O2 -no-pie -fno-pie"), strip: "-s"},
		{name: "hidden", make: program("g++", "-O2 -fvisibility=hidden -fvisibility-inlines-hidden"), strip: "-x"},
	}
	for _, s := range some(several(all, 3), 0) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			testtarget.Need(t, strings.Fields(s.make[strings.Index(s.make, "\t")+1:])[0])
			p := project{files: sharedFiles(), command: []string{"make", "-j2"}, program: "served"}.with("Makefile", s.make).with("third.cc", third)
			program, image := s.build(t, p)
			args := []string{}
			for _, m := range s.more {
				args = append(args, "--base", filepath.Join(filepath.Dir(program), m))
			}
			r, patch := p.buildSource(t, image, p.patch(t, "second.cc", "x * 17 + 3", fix), args...)
			if r.Exit != 0 {
				t.Fatalf("%v", r)
			}
			q := testtarget.Start(t, program)
			is := func(want string) {
				t.Helper()
				if got := q.Ask("5", "^5 -> "); got != want {
					t.Errorf("it says %q, want %q\n%v", got, want, r)
				}
			}
			was := testtarget.TextSnapshot(t, q.PID())
			is("5 -> 1005 88")
			apply(t, q.PID(), patch)
			is("5 -> 1005 11088")
			revert(t, q.PID(), "fix")
			is("5 -> 1005 88")
			unchanged(t, was, q.PID())
			q.Healthy(t)
		})
	}
}

// build builds the program, and strips its image.
func (s shared) build(t *testing.T, p project) (program, image string) {
	t.Helper()
	testtarget.Need(t, "make")
	dir := t.TempDir()
	p.write(t, dir)
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program = filepath.Join(dir, p.program)
	image = program
	if s.image != "" {
		image = filepath.Join(dir, s.image)
	}
	if s.strip != "" {
		run(t, "strip", s.strip, image)
	}
	return program, image
}

// TestVagueRefused: where it cannot be told whether the program has such a thing, or where,
// a patch gets no other one.
func TestVagueRefused(t *testing.T) {
	lengthy(t)
	t.Parallel()
	library := "served: main.o first.o libsecond.so\n\tg++ -o $@ main.o first.o -L. -lsecond -Wl,-rpath,'$$ORIGIN'\n" +
		"libsecond.so: second.o\n\tg++ -shared -Wl,--build-id -o $@ $^\n%.o: %.cc\n\tg++ -std=c++17 -O2 -fPIC -c $<\n"
	p := project{files: sharedFiles(), command: []string{"make"}, program: "served"}.with("Makefile", library)
	program, _ := shared{}.build(t, p)
	image := filepath.Join(filepath.Dir(program), "libsecond.so")
	fix := p.patch(t, "second.cc", "x * 17 + 3", "x * 17 + 3 + level")

	t.Run("a program that is none of the bases has it", func(t *testing.T) {
		t.Parallel()
		r, _ := p.buildSource(t, image, fix)
		if r.Exit != 4 {
			t.Fatalf("%v", r)
		}
		says(t, r, "[shared-definition]", "level", "served, which is none of the bases, has it", "--base", "own-copy")
	})
	t.Run("allowed", func(t *testing.T) {
		t.Parallel()
		r, patch := p.buildSource(t, image, fix, "--allow", "own-copy")
		if r.Exit != 0 {
			t.Fatalf("%v", r)
		}
		says(t, r, "own-copy", "level")
		says(t, must(t, "inspect", patch), "own-copy")
		q := testtarget.Start(t, program)
		apply(t, q.PID(), patch)
		if got := q.Ask("5", "^5 -> "); got != "5 -> 1005 95" { // 88 and 7: its own
			t.Errorf("it says %q", got)
		}
		q.Healthy(t)
	})
	t.Run("only pairs of objects, and no symbols", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		stripped := filepath.Join(dir, "libsecond.so")
		run(t, "strip", "-s", "-o", stripped, image)
		object := func(name, text string) string {
			t.Helper()
			sub := filepath.Join(dir, name)
			p.with("second.cc", text).write(t, sub)
			cmd := exec.Command("g++", "-std=c++17", "-O2", "-fPIC", "-ffunction-sections", "-fdata-sections", "-g", "-c", "second.cc")
			cmd.Dir = sub
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			return filepath.Join(sub, "second.o")
		}
		text := p.files["second.cc"]
		args := []string{"build", "--pre", object("pre", text), "--post", object("post", strings.Replace(text, "x * 17 + 3", "x * 17 + 3 + level", 1)), "--base", stripped, "-o", filepath.Join(dir, "fix.so")}
		r := testtarget.Run(t, args...)
		if r.Exit != 4 {
			t.Fatalf("%v", r)
		}
		says(t, r, "[shared-definition]", "level", "not all that")
		if _, err := os.Stat(filepath.Join(dir, "fix.so")); err == nil {
			t.Error("and there is a patch")
		}
		// If these are all objects, it is new.
		must(t, append(args, "--objects", filepath.Dir(args[2]))...)
		refused(t, 4, "object-unreadable", append(args, "--objects", filepath.Join(dir, "none"))...)
	})
	t.Run("a variable that is moved from another file", func(t *testing.T) {
		t.Parallel()
		make := "served: main.o first.o second.o\n\tg++ -Wl,--build-id -o $@ $^\n%.o: %.cc\n\tg++ -std=c++17 -O2 -c $<\n"
		first := "int total = 1;\nint add(int x) { total += x; return total; }\n" + sharedFiles()["first.cc"]
		p := project{files: sharedFiles(), command: []string{"make"}, program: "served"}.with("Makefile", make).with("first.cc", first)
		_, image := shared{strip: "-s"}.build(t, p)
		r, _ := p.buildSource(t, image, p.patch(t, "first.cc", "int total = 1;\nint add(int x) { total += x; return total; }\n", "",
			"second.cc", "static int mixed", "int total = 1;\nstatic int mixed", "second.cc", "x * 17 + 3", "x * 17 + 3 + total++"))
		if r.Exit != 4 {
			t.Fatalf("%v", r)
		}
		says(t, r, "[moved-variable]", "total")
	})
}

// TestFirstThrow: code of C++ that is the first of its file to throw, and to use stderr and a
// variable of another file, in a stripped program.
func TestFirstThrow(t *testing.T) {
	t.Parallel()
	for _, w := range some(several([]string{"g++ -O2", "g++ -O2 -no-pie -fno-pie", "g++ -O0", "clang++ -O2"}, 2), 0) {
		t.Run(w, func(t *testing.T) {
			t.Parallel()
			testtarget.Need(t, strings.Fields(w)[0])
			files := sharedFiles()
			files["first.cc"] = "#include \"shared.h\"\nint limit = 40;\nint first(int x) { return x + limit; }\nint outside(int x) {\n\ttry {\n\t\treturn second(x);\n\t} catch (...) {\n\t\treturn -1;\n\t}\n}\n"
			files["main.cc"] = strings.Replace(files["main.cc"], "second(x));", "outside(x));", 1)
			files["shared.h"] = strings.Replace(files["shared.h"], "extern int (*volatile registered)(int);", "int outside(int x);", 1)
			p := project{files: files, command: []string{"make"}, program: "served"}.
				with("Makefile", "served: main.o first.o second.o\n\t"+w+" -Wl,--build-id -o $@ $^\n%.o: %.cc\n\t"+w+" -std=c++17 -c $<\n")
			program, image := p.base(t)
			r, patch := p.buildSource(t, image, p.patch(t, "second.cc", "#include <stdio.h>", "#include <stdexcept>\n#include <stdio.h>\nextern int limit;",
				"second.cc", "\treturn x * 17", "\tif (x > limit) {\n\t\tfprintf(stderr, \"too large\\n\");\n\t\tthrow std::runtime_error(\"too large\");\n\t}\n\treturn x * 17"))
			if r.Exit != 0 {
				t.Fatalf("%v", r)
			}
			q := testtarget.Start(t, program)
			is := func(want string) {
				t.Helper()
				if got := q.Ask("50", "^50 -> "); got != "50 -> "+want {
					t.Errorf("it says %q, want %q\n%v", got, want, r)
				}
			}
			is("90 853")
			apply(t, q.PID(), patch)
			is("90 -1")
			revert(t, q.PID(), "fix")
			is("90 853")
			q.Healthy(t)
		})
	}
}
