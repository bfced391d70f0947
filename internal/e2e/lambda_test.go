package e2e

import (
	"os"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// lambdaFiles is the source of a program that keeps lambdas, and calls them for every answer.
func lambdaFiles() map[string]string {
	return map[string]string{
		"main.cc": `#include <functional>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <vector>
std::vector<std::function<int(int)>> kept;
int (*called)(int);
void setup(int k);
int main() {
	char line[64];
	setvbuf(stdout, nullptr, _IOLBF, 0);
	printf("READY %d\n", getpid());
	setup(20);
	while (fgets(line, sizeof line, stdin) != nullptr) {
		int x = atoi(line);
		if (x == 0) {
			kept.clear();
			setup(20);
		}
		printf("%d ->", x);
		for (auto &f : kept)
			printf(" %d", f(x));
		printf(" %d\n", called(x));
	}
}
`,
		"setup.cc": `#include <functional>
#include <vector>
extern std::vector<std::function<int(int)>> kept;
extern int (*called)(int);
void setup(int k) {
	kept.push_back([](int x) { return x + 1; });
	kept.push_back([k](int x) {
		return x * k;
	});
	called = [](int x) { return x - 3; };
}
`,
	}
}

// TestLambda: a lambda that the program has kept is never taken for another one. Each change
// says what is answered to 5 before, after, and once the program has set up anew.
func TestLambda(t *testing.T) {
	lengthy(t)
	t.Parallel()
	changes := []struct {
		name        string
		after, anew string
		warned      bool
		edits       []string
	}{
		{"one is edited", "6 105 2", "6 105 2", false, []string{"setup.cc", "return x * k;", "return x * k + 5;"}},
		{"one in front", "6 100 2", "-900 6 100 2", false, []string{"setup.cc", "\tkept.push_back([](int x) { return x + 1;", "\tkept.push_back([](int x) { return x - 905; });\n\tkept.push_back([](int x) { return x + 1;"}},
		{"other things are captured", "6 100 2", "6 107 2", true, []string{"setup.cc", "kept.push_back([k](int x) {\n\t\treturn x * k;", "int more = k - 13;\n\tkept.push_back([more, k](int x) {\n\t\treturn x * k + more;"}},
		{"two change places", "6 100 2", "100 6 2", false, []string{"setup.cc", "\tkept.push_back([](int x) { return x + 1; });\n", "",
			"setup.cc", "\tcalled =", "\tkept.push_back([](int x) { return x + 1; });\n\tcalled ="}},
		{"the first is gone", "6 100 2", "100 2", true, []string{"setup.cc", "\tkept.push_back([](int x) { return x + 1; });\n", ""}},
		{"one on one line is edited", "7 100 2", "7 100 2", false, []string{"setup.cc", "return x + 1;", "return x + 2;"}},
		{"one in front, and one that is not kept", "6 100 2", "-900 6 100 4", true, []string{"setup.cc", "\tkept.push_back([](int x) { return x + 1;", "\tkept.push_back([](int x) { return x - 905; });\n\tkept.push_back([](int x) { return x + 1;",
			"setup.cc", "return x - 3;", "return x - 1;"}},
		{"another one behind", "6 105 2", "6 105 1005 2", false, []string{"setup.cc", "return x * k;\n\t});", "return x * k + 5;\n\t});\n\tkept.push_back([k](int x) { return x * k + 905; });"}},
	}
	type way struct{ compiler, level string }
	ways := []way{{"g++", "-O2"}, {"clang++", "-O2"}, {"g++", "-O0"}, {"clang++", "-O0"}}
	for i, c := range several(changes, 5) {
		for k, w := range ways {
			if k != i%len(ways) && os.Getenv("HOTPATCH_TEST_ALL") != "1" {
				continue
			}
			t.Run(c.name+" "+w.compiler+w.level, func(t *testing.T) {
				t.Parallel()
				testtarget.Need(t, w.compiler)
				p := project{files: lambdaFiles(), command: []string{"make", "-j2"}, program: "served"}.
					with("Makefile", "served: main.o setup.o\n\t"+w.compiler+" -Wl,--build-id -o $@ $^\n%.o: %.cc\n\t"+w.compiler+" "+w.level+" -c $<\n")
				program, image := p.base(t)
				r, patch := p.buildSource(t, image, p.patch(t, c.edits...))
				if r.Exit != 0 {
					t.Fatalf("%v", r)
				}
				if strings.Contains(r.Stdout+r.Stderr, "kept-type") != c.warned {
					t.Errorf("it should warn: %v\n%v", c.warned, r)
				}
				q := testtarget.Start(t, program)
				is := func(ask, want string) {
					t.Helper()
					if got := q.Ask(ask, "^"+ask+" -> "); got != ask+" -> "+want {
						t.Errorf("to %s it says %q, want %q\n%v", ask, got, want, r)
					}
				}
				is("5", "6 100 2")
				apply(t, q.PID(), patch)
				is("5", c.after)
				q.Ask("0", "^0 -> ")
				is("5", c.anew)
				revert(t, q.PID(), "fix")
				q.Ask("0", "^0 -> ")
				is("5", "6 100 2")
				q.Healthy(t)
			})
		}
	}
}
