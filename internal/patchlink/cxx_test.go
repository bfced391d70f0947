package patchlink

import (
	"fmt"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// rowsCXX has, in the function that changes, what C++ adds: guarded and
// thread-local objects with destructors, virtual calls, exceptions of the
// program's own types through its frames, templates, run-time type information.
const rowsCXX = `
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <typeinfo>
namespace {
struct Problem : std::runtime_error { int code; Problem(const std::string &s, int c) : std::runtime_error(s), code(c) {} };
int created;
}
struct Animal { virtual ~Animal() {} virtual int legs() const { return 0; } };
struct Dog : Animal { int legs() const override { return 4; } };
+struct Bird : Animal { int extra = 1; int legs() const override { return 1 + extra; } };
struct Counted { int n; Counted() : n(100) { ++created; } ~Counted() { --created; } };
template <class T> __attribute__((noinline)) T twice(T x) { static int used; ++used; return x + x + T(used - used); }
inline int &shared() { static int s = 5; return s; }
__attribute__((noinline)) static void check(int x) { if (x == 7) throw Problem("seven", 77); }
__attribute__((noinline)) int work(int x)
{
	static Counted once;
	static thread_local Counted mine;
	static std::map<int, std::string> seen{{1, "first"}};
	once.n++;
	mine.n += 2;
	shared()++;
	Dog dog;
	const Animal *a = &dog;
+	Bird bird;
+	if (x >= 10)
+		a = &bird;
+	static Counted added;
+	added.n += 3;
	try {
		check(x);
		if (x == 8)
			throw Problem("eight", 88);
		if (x == 9)
			throw std::out_of_range("nine");
		seen[x] = std::to_string(x);
	} catch (const Problem &p) {
-		return p.code;
+		return p.code + 1000 + (typeid(*a) == typeid(Dog) ? 0 : 5000);
	}
	if (dynamic_cast<const Dog *>(a) == nullptr && x < 10)
		return -1;
-	return once.n * 10000 + mine.n + shared() + a->legs() + twice(x) + (int)seen.size();
+	return once.n * 10000 + mine.n + shared() + a->legs() + twice(x) + (int)seen.size() + 1000000 + added.n;
}
int main()
{
	char line[100];
	puts("READY");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		int x = atoi(line);
		try {
			if (x == 20)
				throw Problem("main", 99);
			int result = work(x);
			printf("result %d created %d\n", result, created);
		} catch (const std::out_of_range &e) {
			printf("caught %s\n", e.what());
		} catch (const Problem &p) {
			printf("problem %d\n", p.code);
		}
		fflush(stdout);
	}
	return 0;
}
`

func TestRowsCXX(t *testing.T) {
	t.Parallel()
	for _, compiler := range []string{"g++", "clang++"} {
		for _, flags := range []string{"-O2 -fPIE -pie", "-O2 -fno-pie -no-pie", "-O0 -fPIE -pie", "-O1 -fPIC -pie", "-Os -fno-pie -no-pie -fcf-protection=full"} {
			if testing.Short() && !strings.Contains(flags, "-O2") {
				continue
			}
			t.Run(compiler+" "+flags, func(t *testing.T) {
				t.Parallel()
				c := compileBoth(t, "rows.cc", rowsCXX, false, compiler, strings.Fields(flags))
				patch, _ := c.patch(t, byHand(t, c.pre, c.post, "_Z4worki"))
				p := testtarget.Start(t, c.image)
				pid := fmt.Sprint(p.PID())
				once, mine, shared, added, seen := 100, 100, 5, 100, map[int]bool{1: true}
				created := 0
				ask := func(patched bool, xs ...int) {
					t.Helper()
					for _, x := range xs {
						want := "problem 99"
						if x != 20 {
							created = max(created, 2)
							once, mine, shared = once+1, mine+2, shared+1
							legs, more := 4, 0
							if patched {
								created = 3
								added += 3
								more = 1000000 + added
								if x >= 10 {
									legs = 2
								}
							}
							switch {
							case x == 7 || x == 8:
								want = fmt.Sprintf("result %d", x*11)
								if patched {
									want = fmt.Sprintf("result %d", 1000+x*11)
								}
								want += fmt.Sprintf(" created %d", created)
							case x == 9:
								want = "caught nine"
							default:
								seen[x] = true
								want = fmt.Sprintf("result %d created %d", once*10000+mine+shared+legs+2*x+len(seen)+more, created)
							}
						}
						if got := p.Ask(fmt.Sprint(x), "result|caught|problem"); got != want {
							t.Errorf("%d: the program says %q, want %q", x, got, want)
						}
					}
				}
				do := func(args ...string) {
					t.Helper()
					if r := testtarget.Run(t, args...); r.Exit != 0 {
						t.Fatal(r)
					}
				}
				ask(false, 1, 2, 7, 8, 9, 20)
				do("apply", "--pid", pid, patch)
				ask(true, 1, 3, 7, 8, 9, 20, 12, 10)
				do("verify", "--pid", pid)
				do("revert", "--pid", pid, "fix")
				ask(false, 1, 4, 7, 9)
				do("apply", "--pid", pid, patch)
				ask(true, 5, 8)
				p.Healthy(t)
			})
		}
	}
}
