package inject_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"hotpatch/elfsym"
	"hotpatch/inject"
	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
	"hotpatch/ptrace"
)

const target = `
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <stdlib.h>
int main(void)
{
	char line[100];
	puts("READY");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		const char *v = getenv("PATCHED");
		printf("patched %s\n", v ? v : "no");
		fflush(stdout);
	}
	return 0;
}
`

const library = `
#include <stdlib.h>
#include <stdio.h>
int value = 41;
static int *pointer = &value;
__attribute__((constructor)) static void first(void) { value++; }
int get(void) { char s[20]; snprintf(s, sizeof s, "%d", *pointer); setenv("PATCHED", s, 1); return *pointer; }
`

// build compiles the target and library for one C library.
type platform struct {
	name     string
	compiler string
	tree     string
}

var platforms = []platform{
	{name: "glibc"},
	{name: "musl", compiler: "musl-gcc"},
	{name: "bullseye", tree: "bullseye"},
	{name: "trixie", tree: "trixie"},
}

func (pf platform) start(t *testing.T, source string, flags []string) *testtarget.Process {
	return pf.run(t, testtarget.Spec{Files: map[string]string{"target.c": source}, Compiler: pf.compiler, Flags: flags})
}

func (pf platform) run(t *testing.T, spec testtarget.Spec, opts ...testtarget.Option) *testtarget.Process {
	spec.Tree = pf.tree
	exe := testtarget.Build(t, spec)
	if pf.tree != "" {
		opts = append(opts, testtarget.InTree(pf.tree))
	}
	return testtarget.Start(t, exe, opts...)
}

func (pf platform) library(t *testing.T, name, source string, flags ...string) []byte {
	spec := testtarget.Spec{Files: map[string]string{name: source}, Shared: true, Tree: pf.tree, Flags: append([]string{"-O1"}, flags...)}
	if strings.HasSuffix(name, ".c") {
		spec.Compiler = pf.compiler
	}
	data, err := os.ReadFile(testtarget.Build(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// with runs f with an agent in the process.
func with(t *testing.T, pid int, f func(a *inject.Agent, p *procfs.Proc, mem *procfs.Mem) error) error {
	t.Helper()
	p, err := procfs.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	mem, err := p.Mem(true)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	space, err := elfsym.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	l, err := inject.Prepare(p, mem, space)
	if err != nil {
		return err
	}
	return ptrace.Run(p, func(tr *ptrace.Tracer) error {
		a, err := l.Start(tr)
		if err != nil {
			return err
		}
		err = f(a, p, mem)
		return errors.Join(err, a.Close())
	})
}

func symbol(t *testing.T, data []byte, name string) uint64 {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	syms, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range syms {
		if s.Name == name {
			return s.Value
		}
	}
	t.Fatalf("no symbol %s", name)
	return 0
}

func TestLoadAndCall(t *testing.T) {
	for _, pf := range platforms {
		t.Run(pf.name, func(t *testing.T) {
			t.Parallel()
			p := pf.start(t, target, nil)
			lib := pf.library(t, "lib.c", library)
			for round := 1; round <= 3; round++ {
				err := with(t, p.PID(), func(a *inject.Agent, _ *procfs.Proc, mem *procfs.Mem) error {
					l, err := a.Load("test", lib, uint64(round))
					if err != nil {
						return err
					}
					var b [4]byte
					if err := mem.ReadAt(b[:], l.Bias+symbol(t, lib, "value")); err != nil {
						return err
					}
					if b[0] != 41 {
						t.Errorf("round %d: value is %d before the constructors ran", round, b[0])
					}
					if err := a.Construct(l); err != nil {
						return err
					}
					got, err := a.Hook(l.Bias + symbol(t, lib, "get"))
					if err != nil || got != 42 {
						t.Errorf("round %d: get() = %d, %v", round, got, err)
					}
					unmapped, err := a.Unload(l)
					if err == nil && unmapped == (pf.compiler == "musl-gcc") {
						t.Errorf("round %d: unmapped = %v", round, unmapped)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				p.Healthy(t)
				if got := p.Ask("x", "patched"); got != "patched 42" {
					t.Errorf("round %d: the program says %q", round, got)
				}
			}
		})
	}
}

// TestNoResidue loads and unloads many times: mappings, threads and open files
// stay as they were after the first time.
func TestNoResidue(t *testing.T) {
	t.Parallel()
	pf := platforms[0]
	p := pf.start(t, target, nil)
	lib := pf.library(t, "lib.c", library)
	look := func() string {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d fds, %d tasks\n%s", len(fds), len(tasks), maps)
	}
	rounds := 50
	if testing.Short() {
		rounds = 10
	}
	var first string
	for i := 1; i <= rounds; i++ {
		err := with(t, p.PID(), func(a *inject.Agent, _ *procfs.Proc, _ *procfs.Mem) error {
			l, err := a.Load("test", lib, uint64(i))
			if err != nil {
				return err
			}
			if err := a.Construct(l); err != nil {
				return err
			}
			_, err = a.Unload(l)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if i == 2 { // the stack of the agent's thread stays cached from the first time
			first = look()
		}
	}
	if last := look(); last != first {
		t.Errorf("after 2 rounds:\n%s\nafter %d:\n%s", first, rounds, last)
	}
	p.Healthy(t)
}

func TestThrowingConstructor(t *testing.T) {
	const thrower = `
#include <stdexcept>
struct S { S() { throw std::runtime_error("no"); } };
static S s;
int get() { return 1; }
`
	for _, pf := range platforms {
		if pf.compiler != "" {
			continue // there is no C++ library for musl
		}
		t.Run(pf.name, func(t *testing.T) {
			t.Parallel()
			// Without libpthread, which g++ does not add by itself.
			cxx := []string{"-nodefaultlibs", "-Wl,--no-as-needed", "-lstdc++", "-lgcc_s", "-lm", "-lc"}
			p := pf.run(t, testtarget.Spec{Files: map[string]string{"target.cc": target}, Flags: cxx})
			lib := pf.library(t, "lib.cc", thrower, cxx...)
			for i := 1; i <= 2; i++ {
				err := with(t, p.PID(), func(a *inject.Agent, _ *procfs.Proc, _ *procfs.Mem) error {
					l, err := a.Load("test", lib, uint64(i))
					if err != nil {
						return err
					}
					cerr := a.Construct(l)
					if _, err := a.Unload(l); err != nil {
						return err
					}
					return cerr
				})
				if fault.CodeOf(err) != "constructor" || !strings.Contains(err.Error(), "runtime_error") {
					t.Fatalf("error %v", err)
				}
				p.Healthy(t)
				if got := p.Ask("x", "patched"); got != "patched no" {
					t.Errorf("the program says %q", got)
				}
			}
		})
	}
}

// TestNoThreadLibrary: a program of an old glibc without libpthread must not get
// that library, or any other new one, from a patch.
func TestNoThreadLibrary(t *testing.T) {
	t.Parallel()
	pf := platform{name: "bullseye", tree: "bullseye"}
	alone := []string{"-Wl,--as-needed"}
	arena := pf.run(t, testtarget.Spec{Files: map[string]string{"target.c": target}, Flags: alone}, testtarget.Env("MALLOC_ARENA_MAX=1"))
	nothing := func(*inject.Agent, *procfs.Proc, *procfs.Mem) error { return nil }
	if err := with(t, arena.PID(), nothing); fault.CodeOf(err) != "one-arena" {
		t.Errorf("MALLOC_ARENA_MAX=1: error %v", err)
	}
	p := pf.start(t, target, alone)
	lib := pf.library(t, "lib.c", library, "-Wl,--no-as-needed", "-lpthread")
	before := testtarget.TextSnapshot(t, p.PID())
	err := with(t, p.PID(), func(a *inject.Agent, _ *procfs.Proc, _ *procfs.Mem) error {
		_, err := a.Load("test", lib, 1)
		return err
	})
	if fault.CodeOf(err) != "new-library" {
		t.Fatalf("error %v", err)
	}
	for _, d := range testtarget.Diff(before, testtarget.TextSnapshot(t, p.PID())) {
		if !strings.Contains(d, "added") {
			t.Error(d)
		}
	}
	p.Healthy(t)
}

func TestLoaderSaysWhy(t *testing.T) {
	for _, pf := range platforms {
		t.Run(pf.name, func(t *testing.T) {
			t.Parallel()
			p := pf.start(t, target, nil)
			lib := pf.library(t, "lib.c", "extern int nowhere(void); int get(void) { return nowhere(); }")
			err := with(t, p.PID(), func(a *inject.Agent, _ *procfs.Proc, _ *procfs.Mem) error {
				_, err := a.Load("test", lib, 1)
				return err
			})
			if fault.CodeOf(err) != "dlopen" || !strings.Contains(err.Error(), "nowhere") {
				t.Fatalf("error %v", err)
			}
			p.Healthy(t)
		})
	}
}

// orphan loads a library and leaves the agent alone, as if hotpatch had died.
func orphan(t *testing.T, p *testtarget.Process, lib []byte) *procfs.Proc {
	t.Helper()
	pp, err := procfs.Open(p.PID())
	if err != nil {
		t.Fatal(err)
	}
	mem, err := pp.Mem(true)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	space, err := elfsym.Read(pp)
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	l, err := inject.Prepare(pp, mem, space)
	if err != nil {
		t.Fatal(err)
	}
	err = ptrace.Run(pp, func(tr *ptrace.Tracer) error {
		a, err := l.Start(tr)
		if err != nil {
			return err
		}
		_, err = a.Load("orphan", lib, 1)
		return err // and no Close
	})
	if err != nil {
		t.Fatal(err)
	}
	return pp
}

// TestPredecessorKilled: whoever comes after a hotpatch that was killed has its
// agent undo its work at once, and goes on.
func TestPredecessorKilled(t *testing.T) {
	for _, pf := range platforms {
		t.Run(pf.name, func(t *testing.T) {
			t.Parallel()
			p := pf.start(t, target, nil)
			lib := pf.library(t, "lib.c", library)
			orphan(t, p, lib).Close()
			err := with(t, p.PID(), func(a *inject.Agent, pp *procfs.Proc, _ *procfs.Mem) error {
				maps, err := pp.Maps()
				if err != nil {
					return err
				}
				for _, m := range maps {
					if strings.Contains(m.Path, "hotpatch:orphan") && pf.compiler != "musl-gcc" {
						t.Errorf("%s is still mapped", m.Path)
					}
				}
				l, err := a.Load("next", lib, 2)
				if err != nil {
					return err
				}
				return a.Construct(l)
			})
			if err != nil {
				t.Fatal(err)
			}
			p.Healthy(t)
		})
	}
}

func TestAgentEndsAlone(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds, as long as an agent waits for its tracer")
	}
	t.Parallel()
	p := platforms[0].start(t, target, nil)
	lib := platforms[0].library(t, "lib.c", library)
	pp := orphan(t, p, lib)
	defer pp.Close()
	deadline := time.Now().Add(testtarget.Timeout * 2)
	for {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.PID()))
		if err != nil {
			t.Fatal(err)
		}
		tasks, err := pp.Tasks()
		if err != nil {
			t.Fatal(err)
		}
		if len(tasks) == 1 && !strings.Contains(string(maps), "memfd:hotpatch") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d threads, mappings:\n%s", len(tasks), maps)
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.Healthy(t)
}
