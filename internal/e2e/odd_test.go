package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/testtarget"
)

// mine is what odd_states finds in its own file, and nothing else.
const mine = "what this program has written, and nobody else\n"

// odd starts a program in an odd state, in a directory with its file, perhaps by way of
// a command that changes something and becomes the program. Status 3 at its start means
// that this kernel or user cannot have that state, and skips the test.
func odd(t *testing.T, by []string, state ...string) *testtarget.Process {
	t.Helper()
	dir := publicDir(t)
	if err := os.WriteFile(filepath.Join(dir, "mine"), []byte(mine), 0o666); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if now, err := os.ReadFile(filepath.Join(dir, "mine")); string(now) != mine {
			t.Errorf("the program's own file has become %d bytes: %.60q (%v)", len(now), now, err)
		}
	})
	program := copyTo(t, dir, testtarget.Build(t, testtarget.Spec{Sources: []string{"odd_states.c"}, Flags: []string{"-O2"}}))
	command := slices.Concat(by, []string{program}, state)
	if len(by) > 0 {
		testtarget.Need(t, by[0])
		command[0] = lookPath(t, by[0])
	}
	p := testtarget.Start(t, command[0], testtarget.Args(command[1:]...), testtarget.Dir(dir), testtarget.Unready())
	ready := regexp.MustCompile("^READY")
	for deadline := time.Now().Add(testtarget.Timeout); !slices.ContainsFunc(p.Lines(), ready.MatchString); {
		if p.Exited(5 * time.Millisecond) {
			if s := p.Stop(); s.ExitStatus() == 3 {
				t.Skipf("the program has found that this kernel or user has no %v", state)
			} else {
				t.Fatalf("%v ended with %#x", command, s)
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v is not ready", command)
		}
	}
	return p
}

// oddSays ends the test unless the program in its odd state is well and plus_one gives
// this for 1. It gives how many rounds of its own the program has done.
func oddSays(t *testing.T, p *testtarget.Process, want int) (rounds int64) {
	t.Helper()
	m := regexp.MustCompile(`^plus_one\(1\) = (\d+) rounds (\d+) wrong (\d+)$`).FindStringSubmatch(p.Ask("?", "^plus_one"))
	if m == nil || m[1] != strconv.Itoa(want) || m[3] != "0" {
		t.Fatalf("it should say %d, and nothing wrong: %q", want, m)
	}
	return parseNumber(t, m[2])
}

// TestOddStates: processes in states that few are in. A patch goes in and out again, or
// is refused, and nothing that the program looks at has changed.
func TestOddStates(t *testing.T) {
	t.Parallel()
	nobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"}
	limited := func(limit string) []string { return []string{"prlimit", limit} }
	tests := []struct {
		name   string
		by     []string
		state  []string
		codes  []string // with which apply may be refused
		busy   bool     // the program goes round all the time
		apply  []string // further flags
		rounds int
	}{
		{name: "many threads", state: []string{"threads", "2000"}, rounds: 1},
		{name: "io_uring", state: []string{"uring"}, busy: true, rounds: 10},
		{name: "userfaultfd", state: []string{"userfault"}, busy: true, rounds: 3},
		{name: "userfaultfd, memory searched", state: []string{"userfault"}, busy: true, rounds: 3, apply: []string{"--scan", "memory", "--max-pause", "10s"}},
		{name: "handlers for one signal", state: []string{"resethand"}, busy: true, rounds: 5},
		{name: "changes of the user", state: []string{"setuid"}, busy: true, rounds: 5},
		{name: "closes all descriptors", state: []string{"closes"}, busy: true, rounds: 10, codes: sharedDescriptors("descriptor-closed")},
		{name: "no descriptor left", state: []string{"full"}, rounds: 2, codes: sharedDescriptors("no-memfd")},
		{name: "sealed code", state: []string{"sealed"}, rounds: 2},
		{name: "code in memory of no file", state: []string{"anonymous"}, rounds: 2},
		{name: "cancelled threads", state: []string{"cancels"}, busy: true, rounds: 5},
		// Under load such a thread does not get to stop in time.
		{name: "SCHED_IDLE", state: []string{"idle"}, rounds: 2, codes: []string{"not-stopped", "no-agent", "no-thread", "timeout"}},
		{name: "all memory locked", state: []string{"locked"}, rounds: 2},
		{name: "small stacks", state: []string{"small-stacks"}, rounds: 2},
		{name: "RLIMIT_STACK 16 KiB", by: limited("--stack=16384"), rounds: 2},
		{name: "RLIMIT_STACK 1 TiB", by: limited("--stack=1099511627776"), rounds: 2},
		{name: "RLIMIT_STACK unlimited", by: limited("--stack=unlimited"), rounds: 2},
		{name: "RLIMIT_FSIZE 0", by: limited("--fsize=0"), rounds: 2},
		{name: "RLIMIT_NPROC 0", by: append(nobody, limited("--nproc=0")...), rounds: 2, codes: []string{"no-agent"}},
		{name: "little may be locked, and all is", by: append(nobody, limited("--memlock=8000000")...), state: []string{"locked"}, rounds: 2,
			codes: []string{"no-executable-memory", "no-agent", "no-memory", "dlopen"}},
		{name: "no random addresses", by: []string{"setarch", "-R"}, rounds: 2},
		{name: "the old layout of addresses", by: []string{"setarch", "-L"}, rounds: 2},
		{name: "LD_BIND_NOW", by: []string{"env", "LD_BIND_NOW=1"}, rounds: 2},
		{name: "LD_BIND_NOT", by: []string{"env", "LD_BIND_NOT=1"}, rounds: 2},
		{name: "LD_AUDIT", by: []string{"env", "LD_AUDIT=" + auditor(t)}, rounds: 2},
	}
	patch := deepPatch(t)
	for _, test := range some(tests, 1, 6, 7, 13) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if slices.Contains(test.by, "setpriv") || slices.Contains(test.state, "setuid") || slices.Contains(test.state, "locked") {
				testtarget.NeedRoot(t)
			}
			p := odd(t, test.by, test.state...)
			pid := strconv.Itoa(p.PID())
			before, threads, was := testtarget.TextSnapshot(t, p.PID()), resourcesOf(t, p.PID()).threads, oddSays(t, p, 2)
			applied := 0
			for range test.rounds {
				r := testtarget.Run(t, slices.Concat([]string{"apply", "--pid", pid, "--timeout", "1m"}, test.apply, []string{patch})...)
				if r.Exit != 0 {
					if !slices.ContainsFunc(test.codes, func(code string) bool { return strings.Contains(r.Stderr, "["+code+"]") }) || strings.Contains(r.Stderr, "[unexpected]") {
						t.Fatal(r)
					}
					oddSays(t, p, 2)
					continue
				}
				applied++
				oddSays(t, p, 1001)
				must(t, "revert", "--pid", pid, "--all", "--timeout", "1m")
				oddSays(t, p, 2)
			}
			if applied == 0 && len(test.codes) == 0 {
				t.Error("the patch was never applied")
			}
			unchanged(t, before, p.PID())
			p.Healthy(t)
			if !slices.Contains(test.state, "cancels") {
				if now := resourcesOf(t, p.PID()).threads; now != threads {
					t.Errorf("there were %d threads, and there are %d", threads, now)
				}
			}
			for deadline := time.Now().Add(testtarget.Timeout); test.busy && oddSays(t, p, 2) <= was; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the program does not go round any more")
				}
			}
		})
	}
}

// sharedDescriptors gives codes of refusals that only a kernel before 5.9 brings about,
// where the thread that loads has the program's file descriptors.
func sharedDescriptors(codes ...string) []string {
	if unix.CloseRange(1<<31, 1<<31, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return nil
	}
	return codes
}

// deepPatch is a patch of plus_one with a constructor that needs a good part of the
// stack that limits.md promises.
func deepPatch(t *testing.T) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Name: "deep.so", Shared: true, Flags: []string{"-O1"}, Files: map[string]string{"deep.c": `
#include "hotpatch.h"
#include <string.h>
HOTPATCH_NAME("deep", 1)
static volatile char sum;
__attribute__((constructor)) static void deep(void) {
	volatile char room[512 << 10];
	for (unsigned long i = 0; i < sizeof room; i += 1024)
		room[i] = (char)i;
	sum = room[4096];
}
long plus_one(long x);
long plus_one(long x) { return x + 1000; }
`}})
}

// auditor is a library for LD_AUDIT that lets everything be as it is.
func auditor(t *testing.T) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Name: "auditor.so", Shared: true, Flags: []string{"-O1"}, Files: map[string]string{"auditor.c": `
#define _GNU_SOURCE
#include <link.h>
unsigned la_version(unsigned version);
unsigned la_version(unsigned version) { return version; }
unsigned la_objopen(struct link_map *m, Lmid_t l, uintptr_t *c);
unsigned la_objopen(struct link_map *m, Lmid_t l, uintptr_t *c) { (void)m, (void)l, (void)c; return LA_FLG_BINDTO | LA_FLG_BINDFROM; }
char *la_objsearch(const char *n, uintptr_t *c, unsigned f);
char *la_objsearch(const char *n, uintptr_t *c, unsigned f) { (void)c, (void)f; return (char *)n; }
`}})
}

// TestFewMappings: the process may have only a few mappings more (vm.max_map_count).
// Wherever they come to an end, it goes on as before.
func TestFewMappings(t *testing.T) {
	lengthy(t)
	t.Parallel()
	patch := deepPatch(t)
	for _, left := range []int{3, 12, 60} {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			t.Parallel()
			p := odd(t, nil, "mappings", strconv.Itoa(left))
			threads := resourcesOf(t, p.PID()).threads
			code := exeSymbol(t, p.PID(), "plus_one")
			was := peek(t, p.PID(), code, 64)
			switch r := testtarget.Run(t, "apply", "--pid", strconv.Itoa(p.PID()), "--timeout", "1m", patch); {
			case r.Exit == 0:
				oddSays(t, p, 1001)
				revert(t, p.PID())
			case left == 60 || !slices.Contains([]int{1, 4, 5}, r.Exit) || strings.Contains(r.Stderr, "[unexpected]"):
				t.Fatal(r)
			}
			oddSays(t, p, 2)
			if now := peek(t, p.PID(), code, 64); !bytes.Equal(now, was) {
				t.Errorf("plus_one was % x and is % x", was, now)
			}
			if now := resourcesOf(t, p.PID()).threads; now != threads {
				t.Errorf("there were %d threads, and there are %d", threads, now)
			}
			p.Healthy(t)
		})
	}
}

// TestLateSeccomp: the process forbids nearly everything to all its threads, on pain of
// death, before hotpatch has begun to work in it and after it has ended, or at any time
// but while it has a thread there.
func TestLateSeccomp(t *testing.T) {
	t.Parallel()
	patch := calcPatch(t, "plus_one", 1000, "odd", 1)
	p := odd(t, nil, "filters", "0")
	for deadline := time.Now().Add(testtarget.Timeout); statusField(t, p.PID(), "Seccomp") != "2"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the policy does not come")
		}
	}
	refused(t, 5, "seccomp", "apply", "--pid", strconv.Itoa(p.PID()), patch)
	oddSays(t, p, 2)
	p.Healthy(t)

	p = odd(t, nil, "filters", "-1")
	before := testtarget.TextSnapshot(t, p.PID())
	apply(t, p.PID(), patch)
	oddSays(t, p, 1001)
	p.Send("f")
	for deadline := time.Now().Add(testtarget.Timeout); statusField(t, p.PID(), "Seccomp") != "2"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the policy does not come")
		}
	}
	verify(t, p.PID())
	checkList(t, p.PID(), map[string]string{"odd@1": "active"})
	oddSays(t, p, 1001)
	revert(t, p.PID())
	oddSays(t, p, 2)
	unchanged(t, before, p.PID())
	p.Healthy(t)
}

// TestLimitedHotpatch: hotpatch itself may do little. It says so, and the target is as it
// was; or it does without.
func TestLimitedHotpatch(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "prlimit")
	patch := calcPatch(t, "plus_one", 1000, "odd", 1)
	for limit, code := range map[string]string{"--fsize=0": "no-memfd", "--memlock=0": "", "--rtprio=0": "", "--stack=65536": "", "--core=0": "", "--sigpending=0": "no-timer"} {
		t.Run(limit, func(t *testing.T) {
			t.Parallel()
			p := odd(t, nil)
			before := testtarget.TextSnapshot(t, p.PID())
			out, err := exec.Command("prlimit", limit, testtarget.Hotpatch(t), "apply", "--pid", strconv.Itoa(p.PID()), patch).CombinedOutput()
			if (err == nil) != (code == "") || code != "" && !strings.Contains(string(out), "["+code+"]") {
				t.Fatalf("%v, and it should say %q\n%s", err, code, out)
			}
			if code == "" {
				oddSays(t, p, 1001)
				revert(t, p.PID())
			}
			oddSays(t, p, 2)
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

// TestDisturbed: while patches go in and out, somebody else stops and continues the
// process, freezes and thaws it, or attaches a debugger to it. Each command does all or
// nothing, and says why.
func TestDisturbed(t *testing.T) {
	t.Parallel()
	again := func(f func(pid int) error) func(*testing.T, int, <-chan struct{}) error {
		return func(t *testing.T, pid int, quit <-chan struct{}) error {
			for {
				select {
				case <-quit:
					return nil
				default:
				}
				if err := f(pid); err != nil {
					return err
				}
			}
		}
	}
	nap := func(most time.Duration) { time.Sleep(time.Duration(rand.Int64N(int64(most)))) }
	tests := []struct {
		name    string
		disturb func(*testing.T, int, <-chan struct{}) error
		codes   []string
	}{
		{"SIGSTOP and SIGCONT", again(func(pid int) error {
			err := unix.Kill(pid, unix.SIGSTOP)
			nap(3 * time.Millisecond)
			err = errors.Join(err, unix.Kill(pid, unix.SIGCONT))
			nap(6 * time.Millisecond)
			return err
		}), []string{"target-stopped", "no-thread", "no-agent", "not-stopped"}},
		{"strace", again(func(pid int) error {
			_ = exec.Command("timeout", "0.2", "strace", "-f", "-qq", "-o", "/dev/null", "-p", strconv.Itoa(pid)).Run() // it is ended
			nap(50 * time.Millisecond)
			return nil
		}), []string{"already-traced", "no-thread", "no-agent", "not-stopped"}},
		{"gdb", again(func(pid int) error {
			_ = exec.Command("gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-p", strconv.Itoa(pid), "-ex", "detach").Run() // it may not get in
			nap(200 * time.Millisecond)
			return nil
		}), []string{"already-traced", "no-thread", "no-agent", "not-stopped", "target-stopped"}},
		{"frozen", freezes, []string{"no-thread", "no-agent", "not-stopped", "timeout"}},
	}
	patch := calcPatch(t, "plus_one", 1000, "odd", 1)
	for _, test := range some(tests, 0) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if tool := test.name; tool == "strace" || tool == "gdb" {
				testtarget.Need(t, tool)
			}
			p := odd(t, nil, "threads", "5")
			pid, before := strconv.Itoa(p.PID()), testtarget.TextSnapshot(t, p.PID())
			quit, done := make(chan struct{}), make(chan error, 1)
			go func() { done <- test.disturb(t, p.PID(), quit) }()
			end := sync.OnceValue(func() error { close(quit); return <-done })
			defer func() { _ = end() }() // the first time counts
			rounds := 8
			if testing.Short() {
				rounds = 4
			}
			done1 := 0
			for range rounds {
				for _, args := range [][]string{{"apply", "--pid", pid, "--timeout", "2s", patch}, {"revert", "--pid", pid, "--all", "--timeout", "2s"}} {
					r := testtarget.Run(t, args...)
					if r.Exit == 0 {
						done1++
					} else if !slices.ContainsFunc(test.codes, func(code string) bool { return strings.Contains(r.Stderr, "["+code+"]") }) || strings.Contains(r.Stderr, "[unexpected]") {
						t.Fatal(r)
					}
				}
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d of %d commands were carried out", done1, 2*rounds)
			p.Healthy(t)
			must(t, "revert", "--pid", pid, "--all")
			oddSays(t, p, 2)
			apply(t, p.PID(), patch)
			oddSays(t, p, 1001)
			revert(t, p.PID())
			oddSays(t, p, 2)
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

// freezes freezes and thaws a process with the control group freezer.
func freezes(t *testing.T, pid int, quit <-chan struct{}) error {
	write := func(path, text string) error { return os.WriteFile(path, []byte(text), 0o644) }
	group, state, frozen, thawed := "/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"
	if _, err := os.Stat(group); err != nil {
		group, state, frozen, thawed = "/sys/fs/cgroup", "cgroup.freeze", "1", "0"
	}
	was := group
	dir := filepath.Join(group, fmt.Sprintf("hotpatch-test-%d", pid))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Logf("no control group of its own: %v", err) // nothing is disturbed then
		<-quit
		return nil
	}
	err := write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid))
	for running := err == nil; running; {
		select {
		case <-quit:
			running = false
			continue
		default:
		}
		err = errors.Join(err, write(filepath.Join(dir, state), frozen))
		time.Sleep(time.Duration(rand.Int64N(int64(20 * time.Millisecond))))
		err = errors.Join(err, write(filepath.Join(dir, state), thawed))
		time.Sleep(time.Duration(rand.Int64N(int64(20 * time.Millisecond))))
	}
	err = errors.Join(err, write(filepath.Join(was, "cgroup.procs"), strconv.Itoa(pid)))
	for deadline := time.Now().Add(testtarget.Timeout); ; time.Sleep(time.Millisecond) { // it is empty a moment later
		rerr := syscall.Rmdir(dir)
		if rerr == nil || time.Now().After(deadline) {
			return errors.Join(err, rerr)
		}
	}
}
