package e2e

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// TestLibraries: every C library and compiler that there is, with and without
// threads. Without them, the C library of Debian 11 has neither libpthread nor
// libdl in the process, and none is brought along.
func TestLibraries(t *testing.T) {
	t.Parallel()
	var specs []testtarget.Spec
	for _, tree := range append([]string{""}, testtarget.Trees...) {
		for _, compiler := range []string{"gcc", "g++"} {
			for _, threads := range []string{"", "-DTHREADS=3"} {
				s := testtarget.Spec{Tree: tree, Compiler: compiler, Flags: []string{"-O2", "-Wl,--as-needed"}}
				if threads != "" {
					s.Flags = append(s.Flags, threads)
				} else if tree == "bullseye" {
					// Before libpthread, which has functions such as read as well.
					s.Libs = []string{"/lib/x86_64-linux-gnu/libc.so.6"}
				}
				specs = append(specs, s)
			}
		}
	}
	specs = append(specs,
		testtarget.Spec{Compiler: "musl-gcc", Flags: []string{"-O2"}},
		testtarget.Spec{Compiler: "musl-gcc", Flags: []string{"-O2", "-DTHREADS=3"}},
		testtarget.Spec{Compiler: "clang", Flags: []string{"-O2"}},
		testtarget.Spec{Compiler: "clang++", Flags: []string{"-O2", "-DTHREADS=3"}},
	)
	for _, s := range some(specs, 4, 7, 8, 13) {
		t.Run(strings.TrimSpace(s.Tree+" "+s.Compiler+" "+strings.Join(s.Flags, " ")), func(t *testing.T) {
			t.Parallel()
			threads := strings.Contains(strings.Join(s.Flags, " "), "THREADS")
			p := testtarget.Start(t, testtarget.Build(t, answerSpec(s)), inTree(s)...)
			if s.Tree == "bullseye" {
				// What the case is about: no thread library, or one.
				if mapped := len(mapsOf(t, p.PID(), "libpthread")) > 0; mapped != threads {
					t.Fatalf("libpthread is mapped: %v", mapped)
				}
			}
			count := threadsOf(t, p.PID())
			wholeLife(t, p, answerPatchOf(t, s, 1), answerPatchOf(t, s, 2))
			if now := threadsOf(t, p.PID()); now != count {
				t.Errorf("%d threads before, %d after", count, now)
			}
			p.Healthy(t)
		})
	}
}

// TestSeedInTrees: the seed program, of other compilers and C++ libraries, with
// many threads, each in its own mount namespace.
func TestSeedInTrees(t *testing.T) {
	t.Parallel()
	for _, tree := range testtarget.Trees {
		for _, level := range some([]string{"-O2", "-O0"}, 0) {
			t.Run(tree+" "+level, func(t *testing.T) {
				t.Parallel()
				s := testtarget.Spec{Sources: []string{"seed.cc"}, Flags: []string{level}, Tree: tree}
				patch := func(source string) string {
					return testtarget.Build(t, testtarget.Spec{Sources: []string{source}, Flags: []string{level}, Tree: tree, Shared: true})
				}
				p := testtarget.Start(t, testtarget.Build(t, s), testtarget.InTree(tree), testtarget.Args("-q", "16", "1"))
				original := testtarget.TextSnapshot(t, p.PID())
				apply(t, p.PID(), patch("seed_p1.cc"))
				seedSays(t, p, 1, 16)
				apply(t, p.PID(), patch("seed_p2.cc"))
				seedSays(t, p, 2, 16)
				checkList(t, p.PID(), map[string]string{"seed@1": "shadowed", "seed@2": "active"})
				verify(t, p.PID())
				revert(t, p.PID())
				seedSays(t, p, 0, 16)
				unchanged(t, original, p.PID())
				p.Healthy(t)
				seedClean(t, p)
			})
		}
	}
}

// TestMuslStack: patches stack and go in any order with a loader that never
// unloads a library.
func TestMuslStack(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: calcSources, Compiler: "musl-gcc", Flags: []string{"-O2"}}))
	patch := func(version int) string {
		return testtarget.Build(t, testtarget.Spec{Sources: []string{"calc_patch.c"}, Compiler: "musl-gcc", Shared: true, Flags: []string{
			"-O2", "-DNAME=add_one", "-DPATCH=\"musl\"", []string{"-DPLUS=1000", "-DPLUS=2000"}[version-1], []string{"-DVERSION=1", "-DVERSION=2"}[version-1]}})
	}
	original := testtarget.TextSnapshot(t, p.PID())
	for range 3 {
		apply(t, p.PID(), patch(1), patch(2))
		answers(t, p, "add_one", 5, 2005)
		revert(t, p.PID(), "musl@1")
		answers(t, p, "add_one", 5, 2005)
		revert(t, p.PID(), "musl@2")
		answers(t, p, "add_one", 5, 6)
	}
	unchanged(t, original, p.PID())
	p.Healthy(t)
}

// inTree gives the options that run what s builds.
func inTree(s testtarget.Spec) []testtarget.Option {
	if s.Tree == "" {
		return nil
	}
	return []testtarget.Option{testtarget.InTree(s.Tree)}
}

func threadsOf(t testing.TB, pid int) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(tasks)
}
