package inject_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"hotpatch/inject"
	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
)

// everything has every sort of link-time address that a C library can have.
const everything = `
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
int value = 41;
int *pointer = &value;              /* a symbolic relocation */
static int hidden = 7;
static int *const own = &hidden;    /* a relative one, in memory that becomes read-only */
static int *many[200] = {&hidden, &hidden, 0, &hidden, [100] = &hidden, [199] = &hidden};
__thread int local = 5;
static __thread int inner = 6;
static int plain(void) { return 1; }
static void *pick(void) { return (void *)plain; }
int chosen(void) __attribute__((ifunc("pick")));
int other(void) { return 10; }
static int (*const table[])(void) = {other, plain};
static int started;
__attribute__((constructor)) static void first(void) { started = 100; value++; }
int get(void)
{
	char s[20];
	int sum = *pointer + *own + local + inner + chosen() + started;
	for (int i = 0; i < 200; i++)
		sum += many[i] ? *many[i] : 0;
	for (int i = 0; i < 2; i++)
		sum += table[i]();
	snprintf(s, sizeof s, "%d", sum);
	setenv("PATCHED", s, 1);
	return sum;
}
`

const everythingSum = 42 + 7 + 5 + 6 + 1 + 100 + 5*7 + 10 + 1

// near gives the range around the program in which a library is wanted.
func near(p *procfs.Proc) (inject.Near, error) {
	maps, err := p.Maps()
	if err != nil {
		return inject.Near{}, err
	}
	const reach = 1<<31 - 1<<20
	lo := uint64(0)
	if maps[0].Start > reach {
		lo = maps[0].Start - reach
	}
	return inject.Near{Lo: lo, Hi: maps[0].Start + reach, Below: maps[0].Start, Must: true}, nil
}

func TestLoadNear(t *testing.T) {
	for _, pf := range platforms {
		for _, link := range []string{"-pie -fPIE", "-no-pie -fno-pie"} {
			for _, flags := range []string{"", "-Wl,-z,max-page-size=0x10000", "-Wl,-z,pack-relative-relocs", "-fuse-ld=gold -Wl,-z,lazy", "-Wl,--hash-style=sysv -s", "-mtls-dialect=gnu2"} {
				switch {
				case pf.name != "glibc" && flags != "",
					testing.Short() && (flags != "" || pf.tree != "" && strings.HasPrefix(link, "-no")):
					continue
				}
				t.Run(pf.name+" "+link+" "+flags, func(t *testing.T) {
					t.Parallel()
					if strings.Contains(flags, "gold") {
						testtarget.Need(t, "ld.gold")
					}
					source := everything
					if pf.compiler == "musl-gcc" { // musl has no IFUNC, and no thread-local variables for threads that are there already
						source = strings.ReplaceAll(source, "__thread", "")
						source = strings.Replace(source, `int chosen(void) __attribute__((ifunc("pick")));`, "int chosen(void) { return ((int (*)(void))pick())(); }", 1)
					}
					p := pf.start(t, target, strings.Fields(link))
					lib := pf.library(t, "lib.c", source, strings.Fields(flags)...)
					err := with(t, p.PID(), func(a *inject.Agent, pp *procfs.Proc, mem *procfs.Mem) error {
						n, err := near(pp)
						if err != nil {
							return err
						}
						l, err := a.LoadNear("near", lib, 1, n)
						if err != nil {
							return err
						}
						if l.Lo < n.Lo || l.Hi > n.Hi {
							t.Errorf("it is at %#x-%#x, outside %#x-%#x", l.Lo, l.Hi, n.Lo, n.Hi)
						}
						if err := a.Construct(l); err != nil {
							return err
						}
						got, err := a.Hook(l.Bias + symbol(t, lib, "get"))
						if err != nil || got != everythingSum {
							t.Errorf("get() = %d, %v; want %d", got, err, everythingSum)
						}
						unmapped, err := a.Unload(l)
						if err == nil && unmapped == (pf.compiler == "musl-gcc") {
							t.Errorf("unmapped = %v", unmapped)
						}
						return err
					})
					p.Healthy(t)
					if err != nil {
						t.Fatal(err)
					}
					if got := p.Ask("x", "patched"); got != fmt.Sprintf("patched %d", everythingSum) {
						t.Errorf("the program says %q", got)
					}
				})
			}
		}
	}
}

// A loader can be led to any place, also one that would look for itself.
func TestLedLoader(t *testing.T) {
	for _, pf := range platforms {
		if testing.Short() && pf.name == "trixie" {
			continue
		}
		t.Run(pf.name, func(t *testing.T) {
			t.Parallel()
			p := pf.start(t, target, nil)
			lib := pf.library(t, "lib.c", library)
			for round := uint64(1); round <= 3; round++ {
				err := with(t, p.PID(), func(a *inject.Agent, pp *procfs.Proc, _ *procfs.Mem) error {
					maps, err := pp.Maps()
					if err != nil {
						return err
					}
					at, ok := inject.Hole(maps, maps[0].Start-round<<24, 0, maps[0].Start, 1<<20, 0x1000)
					if !ok {
						return fmt.Errorf("there is no hole")
					}
					l, err := a.LoadAt("led", lib, round, at)
					if err != nil {
						return err
					}
					if l.Lo != at {
						t.Errorf("it is at %#x, not at %#x", l.Lo, at)
					}
					if err := a.Construct(l); err != nil {
						return err
					}
					if got, err := a.Hook(l.Bias + symbol(t, lib, "get")); err != nil || got != 42 {
						t.Errorf("get() = %d, %v", got, err)
					}
					_, err = a.Unload(l)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			p.Healthy(t)
		})
	}
}

// A library in C++ that was moved throws and catches, has virtual functions, type
// information and thread-local objects with destructors.
func TestLoadNearCXX(t *testing.T) {
	const source = `
#include <stdexcept>
#include <string>
#include <iostream>
#include <typeinfo>
struct Base { virtual ~Base() {} virtual int get() const { return 1; } };
struct Derived : Base { std::string s = "some text that is longer than a short string"; int get() const override { return (int)s.size(); } };
static thread_local Derived local;
static Derived global;
__attribute__((noinline)) static int thrower(const Base &b) { if (dynamic_cast<const Derived *>(&b)) throw std::runtime_error("thrown"); return 0; }
extern "C" int get()
{
	try { thrower(global); } catch (const std::exception &e) {
		std::cout << "";
		return local.get() + global.get() + (std::string(e.what()) == "thrown" ? 1000 : 0) + (typeid(global) == typeid(Derived) ? 10000 : 0);
	}
	return -1;
}
`
	t.Parallel()
	p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.cc": target}}))
	lib := platforms[0].library(t, "lib.cc", source)
	err := with(t, p.PID(), func(a *inject.Agent, pp *procfs.Proc, _ *procfs.Mem) error {
		n, err := near(pp)
		if err != nil {
			return err
		}
		l, err := a.LoadNear("near", lib, 1, n)
		if err != nil {
			return err
		}
		if err := a.Construct(l); err != nil {
			return err
		}
		got, err := a.Hook(l.Bias + symbol(t, lib, "get"))
		if want := int32(2*len("some text that is longer than a short string") + 11000); err != nil || got != want {
			t.Errorf("get() = %d, %v; want %d", got, err, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Healthy(t)
}

// Where there is no room near, a library that must be there is refused, and any
// other is loaded elsewhere.
func TestLoadNearNoRoom(t *testing.T) {
	t.Parallel()
	p := platforms[0].start(t, target, nil)
	lib := platforms[0].library(t, "lib.c", library)
	err := with(t, p.PID(), func(a *inject.Agent, pp *procfs.Proc, _ *procfs.Mem) error {
		maps, err := pp.Maps()
		if err != nil {
			return err
		}
		n := inject.Near{Lo: maps[0].Start, Hi: maps[0].End, Below: maps[0].Start, Must: true} // taken
		for _, small := range []bool{false, true} {
			if small {
				n.Hi = n.Lo + 0x1000
			}
			if _, err := a.LoadNear("near", lib, 1, n); fault.CodeOf(err) != "no-place-near" {
				return fmt.Errorf("must: %w", err)
			}
		}
		n.Must = false
		l, err := a.LoadNear("near", lib, 1, n)
		if err != nil {
			return err
		}
		if err := a.Construct(l); err != nil {
			return err
		}
		got, err := a.Hook(l.Bias + symbol(t, lib, "get"))
		if got != 42 {
			t.Errorf("get() = %d", got)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Healthy(t)
}

// What the debugger sees of a moved library is in order: readelf and the symbol
// tables agree with where it is.
func TestMovedFileIsWhole(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "readelf")
	p := platforms[0].start(t, target, nil)
	lib := platforms[0].library(t, "lib.c", everything)
	err := with(t, p.PID(), func(a *inject.Agent, pp *procfs.Proc, _ *procfs.Mem) error {
		n, err := near(pp)
		if err != nil {
			return err
		}
		l, err := a.LoadNear("near", lib, 1, n)
		if err != nil {
			return err
		}
		maps, err := pp.Maps()
		if err != nil {
			return err
		}
		for _, m := range maps {
			if m.Start != l.Lo {
				continue
			}
			f, err := pp.OpenMapped(m)
			if err != nil {
				return err
			}
			defer f.Close()
			moved := make([]byte, len(lib))
			if _, err := f.ReadAt(moved, 0); err != nil {
				return err
			}
			if got, want := symbol(t, moved, "get"), l.Bias+symbol(t, lib, "get"); got != want {
				t.Errorf("get is at %#x in the moved file, and at %#x in memory", got, want)
			}
			path := t.TempDir() + "/moved.so"
			if err := os.WriteFile(path, moved, 0o600); err != nil {
				return err
			}
			out, err := exec.Command("readelf", "-aW", path).CombinedOutput()
			if err != nil || strings.Contains(string(out), "Warning") || strings.Contains(string(out), "Error") {
				t.Errorf("readelf complains: %v\n%s", err, out)
			}
			return nil
		}
		return fmt.Errorf("nothing is mapped at %#x", l.Lo)
	})
	if err != nil {
		t.Fatal(err)
	}
}
