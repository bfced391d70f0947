package e2e

import (
	"bytes"
	"fmt"
	"hotpatch/internal/testtarget"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTwoAtOnce: two commands for one process wait for one another, and both
// succeed.
func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	pid := strconv.Itoa(p.PID())
	original := testtarget.TextSnapshot(t, p.PID())
	one, two := calcPatch(t, "add_one", 1000, "one", 1), calcPatch(t, "recursive", 2000, "two", 1)
	both := func(a, b []string) {
		t.Helper()
		x, y := begin(t, a...), begin(t, b...)
		for _, c := range []*command{x, y} {
			if r := c.end(t); r.Exit != 0 {
				t.Fatal(r)
			}
		}
	}
	for range 5 {
		both([]string{"apply", "--pid", pid, one}, []string{"apply", "--pid", pid, two})
		answers(t, p, "add_one", 5, 1005)
		answers(t, p, "recursive", 5, 2005)
		checkList(t, p.PID(), map[string]string{"one@1": "active", "two@1": "active"})
		verify(t, p.PID())
		both([]string{"revert", "--pid", pid, "one"}, []string{"revert", "--pid", pid, "two"})
		answers(t, p, "add_one", 5, 6)
		answers(t, p, "recursive", 5, 5)
	}
	// The same patch twice at the same time: one does it, the other finds it.
	both([]string{"apply", "--pid", pid, one}, []string{"apply", "--pid", pid, one})
	checkList(t, p.PID(), map[string]string{"one@1": "active"})
	revert(t, p.PID())
	unchanged(t, original, p.PID())
	p.Healthy(t)
}

// TestKilledHotpatch: SIGKILL at any moment of an apply or a revert harms
// nobody, and the next command settles what was begun.
func TestKilledHotpatch(t *testing.T) {
	t.Parallel()
	trials := 36
	if testing.Short() {
		trials = 6
	}
	c := seedCase{"g++", "-O2", true, false, 4}
	program, p1, p2 := c.program(t), c.patch(t, 1), c.patch(t, 2)
	p := testtarget.Start(t, program, testtarget.Args("-q", "4", "1"))
	pid := strconv.Itoa(p.PID())
	original := testtarget.TextSnapshot(t, p.PID())

	// How long each takes, to kill it on its way.
	long := map[string]time.Duration{"apply": time.Hour, "revert": time.Hour}
	timed := func(verb string, args ...string) {
		began := time.Now()
		must(t, append([]string{verb, "--pid", pid}, args...)...)
		long[verb] = min(long[verb], time.Since(began))
	}
	for range 3 {
		timed("apply", p1)
		timed("revert", "--all")
	}

	killed := make(map[string]int)
	for n := range trials {
		// A process that was never patched is the hardest case: every step is
		// still to be done.
		if n%3 == 0 {
			unchanged(t, original, p.PID())
			p.Stop()
			p = testtarget.Start(t, program, testtarget.Args("-q", "4", "1"))
			pid = strconv.Itoa(p.PID())
			original = testtarget.TextSnapshot(t, p.PID())
		}
		verb, args := "apply", []string{p1}
		if n%4 == 3 {
			verb, args = "revert", []string{"--all"}
			apply(t, p.PID(), p1)
		}
		command := begin(t, append([]string{verb, "--pid", pid}, args...)...)
		time.Sleep(time.Duration(rand.Int64N(int64(long[verb]))))
		command.kill()
		if r := command.end(t); r.Exit == 128+int(syscall.SIGKILL) {
			killed[verb]++
		} else if r.Exit != 0 {
			t.Fatal(r)
		}

		settles(t, p, fmt.Sprintf("trial %d, %s", n, verb), p2, original, 4)
	}
	if killed["apply"] == 0 {
		t.Errorf("no apply was killed in %d trials (%v)", trials, killed)
	}
}

// TestKilledAtEverySystemCall kills hotpatch on its way into each system call
// that changes anything in the target, one after the other: whatever the last
// thing is that it did, the target goes on and the next command settles it.
func TestKilledAtEverySystemCall(t *testing.T) {
	lengthy(t)
	t.Parallel()
	testtarget.Need(t, "strace")
	c := seedCase{"g++", "-O2", true, false, 2}
	program, p1, p2 := c.program(t), c.patch(t, 1), c.patch(t, 2)
	for _, verb := range []string{"apply", "revert"} {
		for _, call := range []string{"ptrace", "pwrite64"} {
			t.Run(verb+"/"+call, func(t *testing.T) {
				t.Parallel()
				n := 1
				for ; ; n++ {
					p := testtarget.Start(t, program, testtarget.Args("-q", "2", "1"))
					original := testtarget.TextSnapshot(t, p.PID())
					args := []string{"apply", "--pid", strconv.Itoa(p.PID()), p1}
					if verb == "revert" {
						apply(t, p.PID(), p1)
						args = []string{"revert", "--pid", strconv.Itoa(p.PID()), "--all"}
					}
					// strace counts the calls of each thread by itself; ptrace and
					// what belongs to it come from one thread.
					traced := exec.Command("strace", append([]string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=" + call,
						"-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, n), testtarget.Hotpatch(t)}, args...)...)
					out, err := traced.CombinedOutput()
					if err == nil {
						p.Stop()
						break // there is no n-th call
					}
					if status, ok := traced.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() {
						t.Fatalf("call %d: %v: %v\n%s", n, traced, err, out)
					}
					settles(t, p, fmt.Sprintf("killed at call %d", n), p2, original, 2)
					p.Stop()
				}
				if n == 1 {
					t.Fatalf("hotpatch makes no %d calls of %s", n, call)
				}
				t.Logf("killed at calls 1 to %d", n-1)
			})
		}
	}
}

// settles ends the test unless a seed program that a killed hotpatch has left
// runs right and the next commands work. A hotpatch that was killed between two
// writes leaves some functions patched and others not: each is wholly the one or
// the other, for all threads, and list says that something was interrupted.
func settles(t *testing.T, p *testtarget.Process, when, p2 string, original testtarget.Snapshot, threads int) {
	t.Helper()
	p.Healthy(t)
	now := p.Ask("now", "^now ")
	m := regexp.MustCompile(`^now method ([01]) virtual ([01]) function ([01]) threads ` + strconv.Itoa(threads) + "$").FindStringSubmatch(now)
	if m == nil {
		t.Fatalf("%s: the target says %q", when, now)
	}
	if found, r := processesOf(t, "list", "--pid", strconv.Itoa(p.PID())); r.Exit != 0 || len(found) != 1 ||
		!found[0].Interrupted && (m[1] != m[2] || m[2] != m[3]) {
		t.Fatalf("%s: the target says %q and list\n%v", when, now, r)
	}
	pid := strconv.Itoa(p.PID())
	if r := testtarget.Run(t, "apply", "--pid", pid, p2); r.Exit != 0 {
		t.Fatalf("%s: %v", when, r)
	}
	seedSays(t, p, 2, threads)
	verify(t, p.PID())
	revert(t, p.PID())
	seedSays(t, p, 0, threads)
	checkList(t, p.PID(), nil)
	verify(t, p.PID())
	unchanged(t, original, p.PID())
	if got := p.Ask("?", "^all "); !strings.HasSuffix(got, " bad 0") {
		t.Fatalf("%s: the target says %q", when, got)
	}
	p.Healthy(t)
	if now := resourcesOf(t, p.PID()).threads; now != threads {
		t.Fatalf("%s: there are %d threads, want %d", when, now, threads)
	}
}

// command is a hotpatch that runs.
type command struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
}

func begin(t testing.TB, args ...string) *command {
	t.Helper()
	c := &command{cmd: exec.Command(testtarget.Hotpatch(t), args...)}
	c.cmd.Stdout, c.cmd.Stderr = &c.stdout, &c.stderr
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

func (c *command) kill() { _ = c.cmd.Process.Kill() } // it may have ended

func (c *command) end(t testing.TB) testtarget.Result {
	t.Helper()
	watchdog := time.AfterFunc(2*time.Minute, c.kill)
	defer watchdog.Stop()
	err := c.cmd.Wait() // the exit status is looked at below
	state := c.cmd.ProcessState
	if state == nil {
		t.Fatalf("wait for %v: %v", c.cmd, err)
	}
	r := testtarget.Result{Args: c.cmd.Args[1:], Stdout: c.stdout.String(), Stderr: c.stderr.String(), Exit: state.ExitCode()}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		r.Exit = 128 + int(status.Signal())
	}
	return r
}
