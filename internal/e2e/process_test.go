package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/testtarget"
)

var answerCpp = testtarget.Spec{Compiler: "g++", Flags: []string{"-O2"}}

// TestNamespaces: a process in namespaces of its own is resolved from what it
// runs and gets its library without a file system of its own being needed.
func TestNamespaces(t *testing.T) {
	lengthy(t)
	t.Parallel()
	cases := []struct {
		name  string
		flags uintptr
	}{
		{"pid", unix.CLONE_NEWPID},
		{"mount", unix.CLONE_NEWNS},
		{"user", unix.CLONE_NEWUSER},
		{"pid+mount", unix.CLONE_NEWPID | unix.CLONE_NEWNS},
		{"all", unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS},
	}
	for _, c := range cases {
		for _, threads := range []string{"", "-DTHREADS=2"} {
			t.Run(c.name+threads, func(t *testing.T) {
				t.Parallel()
				if c.flags&unix.CLONE_NEWUSER == 0 {
					testtarget.NeedRoot(t)
				}
				s := answerCpp
				if threads != "" {
					s.Flags = append(slices.Clone(s.Flags), threads)
				}
				p := testtarget.Start(t, testtarget.Build(t, answerSpec(s)), testtarget.Namespaces(c.flags))
				wholeLife(t, p, answerPatchOf(t, s, 1), answerPatchOf(t, s, 2))
				p.Healthy(t)
			})
		}
	}
}

// TestChrootWithoutProc: a chroot with nothing but the program in it. A library
// is delivered through /proc, so this is a refusal, and it says so.
func TestChrootWithoutProc(t *testing.T) {
	t.Parallel()
	testtarget.NeedRoot(t)
	testtarget.Need(t, "ldd")
	program := testtarget.Build(t, answerSpec(answerCpp))
	root := t.TempDir()
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	files := []string{program}
	for _, m := range regexp.MustCompile(`(/\S+) \(0x`).FindAllStringSubmatch(string(out), -1) {
		files = append(files, m[1])
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(copied), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := testtarget.Start(t, program, testtarget.Attr(func(a *syscall.SysProcAttr) { a.Chroot = root }))
	original, had := testtarget.TextSnapshot(t, p.PID()), resourcesOf(t, p.PID())
	refused(t, 5, "no-proc", "apply", "--pid", strconv.Itoa(p.PID()), answerPatchOf(t, answerCpp, 1))
	unchanged(t, original, p.PID())
	answerSays(t, p, 0)
	checkList(t, p.PID(), nil)
	if left := mapsOf(t, p.PID(), "hotpatch:"); len(left) > 0 {
		t.Errorf("the refused library is mapped: %q", left)
	}
	if has := resourcesOf(t, p.PID()); has.descriptors != had.descriptors || has.threads != had.threads {
		t.Errorf("before %+v, after %+v", had, has)
	}
	p.Healthy(t)
}

// TestReplacedFiles: the program's or the library's file is removed, or replaced
// by another build, in which the functions are elsewhere. What counts is what the
// process runs.
func TestReplacedFiles(t *testing.T) {
	lengthy(t)
	t.Parallel()
	lib := testtarget.Spec{Files: map[string]string{"answer.h": answerHeader, "functions.cc": answerFunctions},
		Compiler: "g++", Flags: []string{"-O2"}, Shared: true, Name: "libanswer.so"}
	otherLib := lib
	otherLib.Flags = []string{"-O0", "-DOTHER_LAYOUT"}
	other := answerSpec(testtarget.Spec{Compiler: "g++", Flags: []string{"-O0", "-DOTHER_LAYOUT"}})

	replace := map[string]func(t *testing.T, file, by string){
		"removed": func(t *testing.T, file, by string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		},
		// As a package manager does it.
		"replaced": func(t *testing.T, file, by string) {
			if err := os.Rename(testtarget.Copy(t, by), file); err != nil {
				t.Fatal(err)
			}
		},
		// Of a file that looks like the same library, but is something else.
		"garbage": func(t *testing.T, file, by string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte("\x7fELF, not"), 0o755); err != nil {
				t.Fatal(err)
			}
		},
	}
	for how, f := range replace {
		t.Run("executable "+how, func(t *testing.T) {
			t.Parallel()
			program := testtarget.Copy(t, testtarget.Build(t, answerSpec(answerCpp)))
			p := testtarget.Start(t, program)
			f(t, program, testtarget.Build(t, other))
			wholeLife(t, p, answerPatchOf(t, answerCpp, 1), answerPatchOf(t, answerCpp, 2))
			p.Healthy(t)
		})
		t.Run("library "+how, func(t *testing.T) {
			t.Parallel()
			copied := testtarget.Copy(t, testtarget.Build(t, lib))
			// Linked with the copy in a directory that no other test has, so the
			// program is built apart from the cache's.
			program := filepath.Join(t.TempDir(), "answer")
			main := filepath.Join(filepath.Dir(program), "main.cc")
			for name, content := range map[string]string{"main.cc": answerMain, "answer.h": answerHeader} {
				if err := os.WriteFile(filepath.Join(filepath.Dir(program), name), []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			testtarget.Need(t, "g++")
			if out, err := exec.Command("g++", "-O2", "-std=gnu++17", "-pthread", main, copied, "-o", program).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			p := testtarget.Start(t, program)
			f(t, copied, testtarget.Build(t, otherLib))
			wholeLife(t, p, answerPatchOf(t, answerCpp, 1), answerPatchOf(t, answerCpp, 2))
			p.Healthy(t)
		})
	}
}

// TestLeaderless: a process whose main thread has ended goes on in the others,
// while /proc shows its number as a zombie.
func TestLeaderless(t *testing.T) {
	t.Parallel()
	s := testtarget.Spec{Compiler: "g++", Flags: []string{"-O2", "-DTHREADS=2"}}
	p := testtarget.Start(t, testtarget.Build(t, answerSpec(s)), testtarget.Args("leaderless"))
	for deadline := time.Now().Add(testtarget.Timeout); !strings.HasPrefix(statusField(t, p.PID(), "State"), "Z"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the main thread does not end")
		}
	}
	// /proc/PID/mem and maps are empty for a zombie; those of a thread are not.
	answerSays(t, p, 0)
	apply(t, p.PID(), answerPatchOf(t, s, 1))
	answerSays(t, p, 1)
	checkList(t, p.PID(), map[string]string{"answer@1": "active"})
	verify(t, p.PID())
	apply(t, p.PID(), answerPatchOf(t, s, 2))
	answerSays(t, p, 2)
	revert(t, p.PID(), "answer@1")
	answerSays(t, p, 2)
	revert(t, p.PID())
	answerSays(t, p, 0)
	checkList(t, p.PID(), nil)
	p.Healthy(t)
}

// TestStoppedTarget: a process that is stopped by job control cannot load
// anything: apply says so, and it stays stopped. To look at it works.
func TestStoppedTarget(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, testtarget.Build(t, answerSpec(answerCpp)))
	pid := strconv.Itoa(p.PID())
	p1, p2 := answerPatchOf(t, answerCpp, 1), answerPatchOf(t, answerCpp, 2)
	stop := func() {
		t.Helper()
		if err := unix.Kill(p.PID(), unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(testtarget.Timeout); !strings.HasPrefix(statusField(t, p.PID(), "State"), "T"); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("it does not stop")
			}
		}
	}
	// A thread that a tracer lets go in a stop wakes and stops again, in the
	// kernel (ptrace(2)): that may take a moment.
	stopped := func() {
		t.Helper()
		for deadline := time.Now().Add(testtarget.Timeout); !strings.HasPrefix(statusField(t, p.PID(), "State"), "T (stopped)"); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("its state is %q", statusField(t, p.PID(), "State"))
			}
		}
		if tracer := statusField(t, p.PID(), "TracerPid"); tracer != "0" {
			t.Fatalf("it is traced by %s", tracer)
		}
	}
	goOn := func() {
		t.Helper()
		if err := unix.Kill(p.PID(), unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	original := testtarget.TextSnapshot(t, p.PID())

	stop()
	whole := testtarget.FullSnapshot(t, p.PID())
	refused(t, 3, "target-stopped", "apply", "--pid", pid, p1)
	stopped()
	must(t, "list", "--pid", pid)
	verify(t, p.PID())
	if diff := testtarget.Diff(whole, testtarget.FullSnapshot(t, p.PID())); len(diff) > 0 {
		t.Fatalf("it has changed:\n%s", strings.Join(diff, "\n"))
	}
	goOn()
	answerSays(t, p, 0)

	apply(t, p.PID(), p1)
	stop()
	checkList(t, p.PID(), map[string]string{"answer@1": "active"})
	verify(t, p.PID())
	refused(t, 3, "target-stopped", "apply", "--pid", pid, p2)
	stopped()
	// Taking a patch out needs no code to run there.
	revert(t, p.PID())
	stopped()
	checkList(t, p.PID(), nil)
	goOn()
	answerSays(t, p, 0)
	unchanged(t, original, p.PID())
	p.Healthy(t)
}

// torture starts the torture program in some of its modes, and gives a patch of
// its function plus_one, which threads call all the time, that changes nothing.
func torture(t *testing.T, modes ...string) (p *testtarget.Process, patch string) {
	t.Helper()
	patch = calcPatch(t, "plus_one", 1, "torture", 1)
	p = testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: tortureSources, Flags: []string{"-O2"}}), testtarget.Args(modes...))
	return p, patch
}

// underPatches applies and reverts a patch while the torture program checks
// itself, at least so often, until every check has gone round during it.
func underPatches(t *testing.T, p *testtarget.Process, patch string, rounds int) {
	t.Helper()
	if testing.Short() {
		rounds = min(rounds, 4)
	}
	entry := listedAddress(t, p.PID(), "plus_one")
	original := peek(t, p.PID(), entry, 16)
	first := tortureCounts(t, p)
	deadline := time.Now().Add(2 * testtarget.Timeout)
	for n := 0; ; n++ {
		apply(t, p.PID(), patch)
		checkList(t, p.PID(), map[string]string{"torture@1": "active"})
		verify(t, p.PID())
		if bytes.Equal(peek(t, p.PID(), entry, 16), original) {
			t.Fatalf("plus_one at %#x is as it was", entry)
		}
		revert(t, p.PID())
		if now := peek(t, p.PID(), entry, 16); !bytes.Equal(now, original) {
			t.Fatalf("plus_one at %#x: % x before, % x after", entry, original, now)
		}
		if n+1 < rounds {
			continue
		}
		late := ""
		for name, count := range tortureCounts(t, p) {
			if count <= first[name] && name != "wrong" && name != "pause" {
				late = name
			}
		}
		if late == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not go on", late)
		}
	}
	if now := tortureCounts(t, p); now["wrong"] != 0 {
		t.Errorf("the program has found %d wrong results", now["wrong"])
	}
	p.Healthy(t)
}

// tortureCounts gives how often each check has gone round.
func tortureCounts(t *testing.T, p *testtarget.Process) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	for _, m := range regexp.MustCompile(`(\w+)=(\d+)`).FindAllStringSubmatch(p.Ask("?", "^status"), -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		counts[m[1]] = n
	}
	if len(counts) < 2 {
		t.Fatalf("nothing runs: %v", counts)
	}
	return counts
}

// TestTorture: whatever a process does, to apply and to revert patches over and
// over changes nothing of it. Each kind of work by itself, for what one kind
// would hide of another, and all together.
func TestTorture(t *testing.T) {
	lengthy(t)
	t.Parallel()
	cases := [][]string{
		{"threads", "spin", "errno"},    // threads come and go; registers, red zones, vector state
		{"threads", "malloc", "dlopen"}, // every lock that loading a library needs is held now and then
		{"threads", "fork", "malloc"},
		{"threads", "syscalls"}, // no call that blocks is cut short
		{"spin", "malloc", "dlopen", "fork", "threads", "errno", "dispositions", "signals", "syscalls"},
	}
	for _, modes := range cases {
		t.Run(strings.Join(modes, "+"), func(t *testing.T) {
			t.Parallel()
			p, patch := torture(t, modes...)
			underPatches(t, p, patch, 8)
		})
	}
}

// TestTortureIsPatched is the other side of TestTorture: a patch that makes
// plus_one give a wrong result is noticed, so the function is replaced there.
func TestTortureIsPatched(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: tortureSources, Flags: []string{"-O2"}}), testtarget.Args("-k", "threads"))
	apply(t, p.PID(), calcPatch(t, "plus_one", 2, "wrong", 1))
	p.Line("^WRONG threads: thread [0-3] gave 100[2-5]$", testtarget.Timeout)
	revert(t, p.PID())
}

// TestSignals: of one signal a millisecond, none is lost, doubled or late.
func TestSignals(t *testing.T) {
	t.Parallel()
	p, patch := torture(t, "signals", "threads")
	underPatches(t, p, patch, 30)
	settled := regexp.MustCompile(`^settled sent ([1-9]\d*) received (\d+) wrong 0$`)
	if m := settled.FindStringSubmatch(p.Ask("settle", "^settled")); m == nil || m[1] != m[2] {
		t.Errorf("signals: %q", m)
	}
}

// TestDispositions: a program that ignores SIGTRAP and SIGSEGV, handles and
// blocks others, has the same of all after many patches, in every thread.
func TestDispositions(t *testing.T) {
	t.Parallel()
	p, patch := torture(t, "dispositions", "signals", "threads")
	masks := func() map[string]string {
		all := make(map[string]string)
		for _, field := range []string{"SigIgn", "SigCgt", "SigBlk"} {
			all[field] = statusField(t, p.PID(), field)
		}
		return all
	}
	tortureCounts(t, p)
	for deadline := time.Now().Add(testtarget.Timeout); tortureCounts(t, p)["dispositions"] == 0 || tortureCounts(t, p)["signals_sent"] == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the program does not begin")
		}
	}
	before := masks()
	ignored, err := strconv.ParseUint(before["SigIgn"], 16, 64)
	if err != nil || ignored&(1<<(unix.SIGTRAP-1)) == 0 || ignored&(1<<(unix.SIGSEGV-1)) == 0 {
		t.Fatalf("SIGTRAP and SIGSEGV are not ignored: %s, %v", before["SigIgn"], err)
	}
	underPatches(t, p, patch, 25)
	after := masks()
	if fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("before %v\nafter  %v", before, after)
	}
}
