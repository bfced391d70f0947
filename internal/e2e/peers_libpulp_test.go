package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// The scenarios of libpulp's tests, re-created as far as no other test has them.
// peers_test.go says which test stands for which scenario of which tool.

// TestTwoLibraries: one of two libraries is patched, then the other one too, also if
// their own calls are bound within them.
func TestTwoLibraries(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{nil, {"-Wl,-Bsymbolic"}} {
		t.Run(fmt.Sprint(flags), func(t *testing.T) {
			t.Parallel()
			library := func(name string, plus int) string {
				return testtarget.Build(t, testtarget.Spec{Name: "lib" + name + ".so", Shared: true, Flags: append([]string{"-O2"}, flags...), Files: map[string]string{name + ".c": fmt.Sprintf(`
long %[1]s_inner(long x);
__attribute__((noinline)) long %[1]s_inner(long x) { __asm__ volatile("" : "+r"(x)); return x + %[2]d; }
long %[1]s(long x);
__attribute__((noinline)) long %[1]s(long x) { return %[1]s_inner(x) + 1; }
`, name, plus)}})
			}
			p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Name: "two", Flags: []string{"-O2"}, Libs: []string{library("dozens", 12), library("hundreds", 100)},
				Files: map[string]string{"main.c": callerSource([]string{"dozens", "hundreds"})}}))
			before := testtarget.TextSnapshot(t, p.PID())
			apply(t, p.PID(), calcPatch(t, "dozens_inner", 1000, "dozens", 1))
			asks(t, p, "dozens", 5, 1006)
			asks(t, p, "hundreds", 5, 106)
			apply(t, p.PID(), calcPatch(t, "hundreds_inner", 2000, "hundreds", 1))
			asks(t, p, "dozens", 5, 1006)
			asks(t, p, "hundreds", 5, 2006)
			revert(t, p.PID(), "dozens")
			asks(t, p, "dozens", 5, 18)
			asks(t, p, "hundreds", 5, 2006)
			revert(t, p.PID())
			asks(t, p, "hundreds", 5, 106)
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

// TestRecursiveFunctions: a function that calls itself, and two that call each other.
func TestRecursiveFunctions(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	before := testtarget.TextSnapshot(t, p.PID())
	apply(t, p.PID(), patchOf(t, "recursive.c", `#include "hotpatch.h"
HOTPATCH_NAME("recursive", 1)
long recursive(long x);
long recursive(long x) { return x <= 0 ? 100 : 2 + recursive(x - 1); }
`))
	answers(t, p, "recursive", 20, 140)
	// One of two that call each other: they alternate between old and new.
	apply(t, p.PID(), patchOf(t, "mutual.c", `#include "hotpatch.h"
HOTPATCH_NAME("mutual", 1)
HOTPATCH_REF_FUNC(long, odd, (long), "mutual_odd")
long mutual_even(long x);
long mutual_even(long x) { return x <= 0 ? 7 : odd(x - 1); }
`))
	answers(t, p, "mutual_even", 20, 7)
	answers(t, p, "mutual_odd", 20, 0)
	answers(t, p, "mutual_odd", 21, 7)
	revert(t, p.PID())
	answers(t, p, "recursive", 20, 20)
	answers(t, p, "mutual_odd", 21, 1)
	unchanged(t, before, p.PID())
	p.Healthy(t)
}

// pulp starts at_work.c.
func pulp(t *testing.T, args ...string) *testtarget.Process {
	t.Helper()
	return testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: []string{"at_work.c"}, Flags: []string{"-O2"}}), testtarget.Args(args...))
}

// pulpSays ends the test unless the program is well and plus_one gives this for 1.
func pulpSays(t *testing.T, p *testtarget.Process, want int) (rounds int64) {
	t.Helper()
	got := p.Ask("?", `^plus_one`)
	start := fmt.Sprintf("plus_one(1) = %d wrong 0 rounds ", want)
	if !strings.HasPrefix(got, start) {
		t.Fatalf("the target says %q, want %q", got, start)
	}
	return parseNumber(t, strings.TrimPrefix(got, start))
}

// TestAtWork: a function is replaced while threads do what takes other tools' patches
// down, or keeps them out for ever.
func TestAtWork(t *testing.T) {
	lengthy(t)
	t.Parallel()
	patch := calcPatch(t, "plus_one", 1000, "pulp", 1)
	for _, what := range []string{"storm", "handler", "cancel", "guarded", "writable"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := pulp(t, what)
			was := pulpSays(t, p, 2)
			protection := mapsOf(t, p.PID(), "rwx")
			if (what == "writable") != (len(protection) == 1) {
				t.Fatalf("writable code: %q", protection)
			}
			for range 5 {
				must(t, "apply", "--pid", strconv.Itoa(p.PID()), "--timeout", "1m", patch)
				pulpSays(t, p, 1001)
				must(t, "revert", "--pid", strconv.Itoa(p.PID()), "--timeout", "1m", "--all")
				pulpSays(t, p, 2)
			}
			if now := mapsOf(t, p.PID(), "rwx"); !slices.Equal(now, protection) {
				t.Errorf("writable code: %q before, %q after", protection, now)
			}
			for deadline := time.Now().Add(testtarget.Timeout); what != "writable" && pulpSays(t, p, 2) < was+100; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the program does not go on")
				}
			}
			p.Healthy(t)
		})
	}
}

// TestParentHearsNothing: the parent of a target, which waits for it to stop and to go
// on, hears of nothing, neither by waitpid(2) nor by SIGCHLD.
func TestParentHearsNothing(t *testing.T) {
	t.Parallel()
	p := pulp(t, "parent")
	child, err := strconv.Atoi(strings.TrimPrefix(p.Lines()[0], "child "))
	if err != nil {
		t.Fatal(err)
	}
	patch, before := calcPatch(t, "plus_one", 1000, "pulp", 1), testtarget.TextSnapshot(t, child)
	rounds := 16
	if testing.Short() {
		rounds = 4
	}
	for range rounds {
		apply(t, child, patch)
		checkList(t, child, map[string]string{"pulp@1": "active"})
		revert(t, child)
	}
	pulpSays(t, p, 2)
	unchanged(t, before, child)
	// That it would have noticed: a stop is one "wrong", and so is going on.
	if err := syscall.Kill(child, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(testtarget.Timeout); strings.Contains(p.Ask("?", "^plus_one"), " wrong 0 "); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the parent notices nothing")
		}
	}
	if err := syscall.Kill(child, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// TestChrootIntoProc: the root directory of the target is /proc, in which no /proc is.
func TestChrootIntoProc(t *testing.T) {
	t.Parallel()
	testtarget.NeedRoot(t)
	p := pulp(t, "chroot", "/proc")
	before, threads := testtarget.TextSnapshot(t, p.PID()), resourcesOf(t, p.PID()).threads
	refused(t, 5, "no-proc", "apply", "--pid", strconv.Itoa(p.PID()), calcPatch(t, "plus_one", 1000, "pulp", 1))
	pulpSays(t, p, 2)
	unchanged(t, before, p.PID())
	if now := resourcesOf(t, p.PID()).threads; now != threads {
		t.Errorf("there were %d threads, and there are %d", threads, now)
	}
	p.Healthy(t)
}

// TestManyProcesses: each of many processes of one program is patched, listed and
// reverted by a command of its own, all of which succeed.
func TestManyProcesses(t *testing.T) {
	t.Parallel()
	count := 60
	if testing.Short() {
		count = 3
	}
	one, two := calcPatch(t, "plus_one", 1000, "one", 1), calcPatch(t, "plus_one", 2000, "two", 2)
	var all []*testtarget.Process
	for range count {
		all = append(all, pulp(t))
	}
	for _, p := range all {
		apply(t, p.PID(), one)
		apply(t, p.PID(), two)
	}
	listed, r := processesOf(t, "list")
	for _, p := range all {
		if !slices.ContainsFunc(listed, func(s processState) bool { return s.PID == p.PID() && len(s.Patches) == 2 }) {
			t.Errorf("process %d is not listed with two patches\n%v", p.PID(), r)
		}
		pulpSays(t, p, 2001)
	}
	for _, p := range all {
		revert(t, p.PID())
		pulpSays(t, p, 2)
		p.Healthy(t)
	}
}

// TestPathsAndLeftovers: patches are found by relative paths; after a failure what was
// applied stays; after a revert others go in; and nothing is left in any directory.
func TestPathsAndLeftovers(t *testing.T) {
	t.Parallel()
	p := pulp(t)
	pid, before, had := strconv.Itoa(p.PID()), testtarget.TextSnapshot(t, p.PID()), resourcesOf(t, p.PID())
	dir, temporary := t.TempDir(), t.TempDir()
	for version, name := range []string{"", "first.so", "second.so", "third.so"} {
		if version == 0 {
			continue
		}
		content, err := os.ReadFile(calcPatch(t, "plus_one", 1000*version, strings.TrimSuffix(name, ".so"), version))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(args ...string) testtarget.Result {
		t.Helper()
		return testtarget.RunIn(t, dir, []string{"TMPDIR=" + temporary, "HOME=" + temporary, "TERM=dumb"}, args...)
	}
	well := func(r testtarget.Result) {
		t.Helper()
		if r.Exit != 0 {
			t.Fatal(r)
		}
	}
	well(in("apply", "--pid", pid, "first.so"))
	pulpSays(t, p, 1001)
	well(in("apply", "--pid", pid, "./second.so"))
	pulpSays(t, p, 2001)
	for _, bad := range [][]string{{"apply", "nowhere.so"}, {"apply", "third.so", "nowhere.so"}, {"revert", "nobody"}, {"revert", "second", "nobody"}} {
		if r := in(slices.Concat(bad[:1], []string{"--pid", pid}, bad[1:])...); r.Exit != 4 {
			t.Errorf("it should exit with 4\n%v", r)
		}
		pulpSays(t, p, 2001)
		checkList(t, p.PID(), map[string]string{"first@1": "shadowed", "second@2": "active"})
	}
	well(in("revert", "--pid", pid, "--all"))
	pulpSays(t, p, 2)
	well(in("apply", "--pid", pid, "../"+filepath.Base(dir)+"/third.so"))
	pulpSays(t, p, 3001)
	well(in("revert", "--pid", pid, "--all"))
	well(in("revert", "--pid", pid, "--all")) // already so
	for _, d := range []string{dir, temporary} {
		entries, err := os.ReadDir(d)
		if err != nil || len(entries) != map[string]int{dir: 3, temporary: 0}[d] {
			t.Errorf("left in %s: %v (%v)", d, entries, err)
		}
	}
	if has := resourcesOf(t, p.PID()); has.descriptors != had.descriptors || has.threads != had.threads {
		t.Errorf("before %+v, after %+v", had, has)
	}
	unchanged(t, before, p.PID())
	p.Healthy(t)
}

// TestBadPatchFirst: after a patch with an unresolved symbol was refused, a good one goes
// in as if nothing had been.
func TestBadPatchFirst(t *testing.T) {
	t.Parallel()
	p := pulp(t)
	before := testtarget.TextSnapshot(t, p.PID())
	bad := patchOf(t, "bad.c", "#include \"hotpatch.h\"\nHOTPATCH_NAME(\"pulp\", 1)\nlong plus_one(long x);\nlong nowhere(long x);\nlong plus_one(long x) { return nowhere(x); }\n")
	refused(t, 4, "dlopen", "apply", "--pid", strconv.Itoa(p.PID()), bad)
	pulpSays(t, p, 2)
	checkList(t, p.PID(), nil)
	apply(t, p.PID(), calcPatch(t, "plus_one", 1000, "pulp", 1))
	pulpSays(t, p, 1001)
	revert(t, p.PID())
	unchanged(t, before, p.PID())
	p.Healthy(t)
}

// TestNotesInAnyOrder: the build-id of a program that has other notes too, before and
// behind it, is found, and that of another build is not taken for it.
func TestNotesInAnyOrder(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "readelf")
	notes := `
	.macro note section, type, text
	.section .note.\section, "a", @note
	.p2align 2
	.long	2f - 1f, 4f - 3f, \type
1:	.asciz	"\text"
2:	.p2align 2
3:	.long	7, 8, 9
4:	.p2align 2
	.endm
	note AAA, 3, "AAA"
	note zzz, 3, "GNV"
	note mmm, 1, "GNU"
	.section .note.GNU-stack, "", @progbits
`
	program := testtarget.Build(t, testtarget.Spec{Name: "noted", Flags: []string{"-O2", "-Wl,--build-id=0x00112233445566778899aabbccddeeff00112233"},
		Sources: []string{"at_work.c"}, Files: map[string]string{"notes.S": notes}})
	if out, err := exec.Command("readelf", "-nW", program).CombinedOutput(); err != nil || !strings.Contains(string(out), "AAA") {
		t.Fatalf("the program has no such notes: %v\n%s", err, out)
	}
	p := testtarget.Start(t, program)
	based := func(id string) string {
		return patchOf(t, "based.c", "#include \"hotpatch.h\"\nHOTPATCH_NAME(\"based\", 1)\nHOTPATCH_BASE(\""+id+"\")\nlong plus_one(long x);\nlong plus_one(long x) { return x + 1000; }\n")
	}
	refused(t, 4, "build-id", "apply", "--pid", strconv.Itoa(p.PID()), based("ffeeddccbbaa99887766554433221100ffeeddcc"))
	pulpSays(t, p, 2)
	apply(t, p.PID(), based("00112233445566778899aabbccddeeff00112233"))
	pulpSays(t, p, 1001)
	revert(t, p.PID())
	pulpSays(t, p, 2)
}
