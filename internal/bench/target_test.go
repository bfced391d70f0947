package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/elfsym"
	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
)

// source reads a file of testdata/bench.
func source(b testing.TB, name string) string {
	b.Helper()
	text, err := os.ReadFile(filepath.Join(testtarget.Root(b), "testdata/bench", name))
	if err != nil {
		b.Fatal(err)
	}
	return string(text)
}

// program builds a program of testdata/bench.
func program(b testing.TB, name string) string {
	b.Helper()
	return testtarget.Build(b, testtarget.Spec{Files: map[string]string{name: source(b, name)}, Flags: []string{"-O2"}})
}

// functions is the source of n functions function0, function1, …, which add plus.
func functions(n, plus int) string {
	var s strings.Builder
	s.WriteString("#define F(i) __attribute__((noinline)) long function##i(long x) { return x * 3 + i + PLUS; }\n")
	fmt.Fprintf(&s, "#define PLUS %d\n", plus)
	for i := range n {
		fmt.Fprintf(&s, "F(%d)\n", i)
	}
	return s.String()
}

// targetProgram builds the target with n functions.
func targetProgram(b testing.TB, n int) string {
	return testtarget.Build(b, testtarget.Spec{
		Files: map[string]string{"target.c": source(b, "target.c"), "functions.c": functions(n, 0)},
		Flags: []string{"-O1"}, Name: fmt.Sprintf("target%d", n),
	})
}

// patchOf builds a patch that replaces the first n functions.
func patchOf(b testing.TB, n int) string {
	return testtarget.Build(b, testtarget.Spec{
		Files: map[string]string{"patch.c": functions(n, 1)}, Shared: true, Flags: []string{"-O1"}, Name: fmt.Sprintf("patch%d.so", n),
	})
}

// target is a running target with n functions that a patch replaces.
type target struct {
	*testtarget.Process
	b        testing.TB
	threads  int
	patch    string
	sites    []string // where its functions are, in hexadecimal
	longest  []byte   // the target's FILE
	floorBin string
	crowded  bool // its threads leave no processor to ordinary ones
}

// manySpinning is how many threads that spin make a target crowded.
const manySpinning = 1000

// startTarget starts a target of so many threads, in a mode of target.c.
func startTarget(b testing.TB, threads int, mode string, n int) *target {
	b.Helper()
	testtarget.Hotpatch(b) // while there are processors to build it
	file := filepath.Join(b.TempDir(), "longest")
	if err := os.WriteFile(file, make([]byte, 8*threads), 0o600); err != nil {
		b.Fatal(err)
	}
	t := &target{b: b, threads: threads, patch: patchOf(b, n), longest: shared(b, file, 8*threads), floorBin: program(b, "floor.c"), crowded: mode == "spin" && threads >= manySpinning}
	t.Process = testtarget.Start(b, targetProgram(b, n), testtarget.Args(strconv.Itoa(threads), mode, file))
	t.sites = t.find(n)
	return t
}

// shared maps a file.
func shared(b testing.TB, path string, size int) []byte {
	b.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unix.Munmap(mapped) })
	return mapped
}

// inspect shows f the symbols of the target.
func (t *target) inspect(f func(*elfsym.Space)) {
	t.b.Helper()
	proc, err := procfs.Open(t.PID())
	if err != nil {
		t.b.Fatal(err)
	}
	defer proc.Close()
	space, err := elfsym.Read(proc)
	if err != nil {
		t.b.Fatal(err)
	}
	defer space.Close()
	f(space)
}

// find gives the addresses of the functions.
func (t *target) find(n int) (sites []string) {
	t.b.Helper()
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("function%d", i))
	}
	t.inspect(func(space *elfsym.Space) {
		found, err := space.Lookup(names)
		if err != nil {
			t.b.Fatal(err)
		}
		for _, name := range names {
			if len(found[name]) != 1 {
				t.b.Fatalf("%s is %d times in the target", name, len(found[name]))
			}
			sites = append(sites, strconv.FormatUint(found[name][0].Addr, 16))
		}
	})
	return sites
}

// least is what the floor program said of one pause.
type least struct{ pause, asked, stopped, written, resumed time.Duration }

// floor stops the target as shortly as can be, once for each round.
func (t *target) floor(rounds int) []least {
	t.b.Helper()
	args := append([]string{strconv.Itoa(t.PID()), strconv.Itoa(rounds)}, t.sites...)
	out, _, err := runAs(t.crowded, t.floorBin, args...)
	if err != nil {
		t.b.Fatalf("floor: %v\n%s", err, out)
	}
	var list []least
	for line := range strings.Lines(out) {
		var l least
		if _, err := fmt.Sscan(line, &l.pause, &l.asked, &l.stopped, &l.written, &l.resumed); err != nil {
			t.b.Fatalf("floor: %v\n%s", err, out)
		}
		list = append(list, l)
	}
	return list
}

// ran is what one run of hotpatch took.
type ran struct {
	pause, wall, user, system time.Duration

	refused bool // hotpatch says: not now
}

// notNow is the exit status of hotpatch if threads do not get to run in time.
const notNow = 3

// hotpatch runs the built hotpatch on the target, which must take one pause.
func (t *target) hotpatch(verb string, args ...string) ran {
	t.b.Helper()
	return runHotpatch(t.b, t.crowded, t.threads, append([]string{verb, "--json", "--pid", strconv.Itoa(t.PID())}, args...)...)
}

func (t *target) apply(consistency string) ran {
	t.b.Helper()
	return t.hotpatch("apply", "--consistency", consistency, t.patch)
}

func (t *target) revert(consistency string) ran {
	t.b.Helper()
	return t.hotpatch("revert", "--consistency", consistency, "--all")
}

// runHotpatch runs hotpatch with --json. threads is how many must have been stopped;
// 0: nothing was.
func runHotpatch(b testing.TB, realtime bool, threads int, args ...string) ran {
	b.Helper()
	out, r, err := runAs(realtime, testtarget.Hotpatch(b), args...)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == notNow {
		r.refused = true
		return r
	}
	if err != nil {
		b.Fatalf("hotpatch %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	if threads == 0 {
		return r
	}
	p, err := testtarget.PauseOf(out)
	if err != nil {
		b.Fatalf("hotpatch %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	if p.Microseconds <= 0 || p.Threads < threads {
		b.Fatalf("hotpatch %s: it stopped %d threads, and not %d\n%s", strings.Join(args, " "), p.Threads, threads, out)
	}
	r.pause = time.Duration(p.Microseconds * float64(time.Microsecond))
	return r
}

// forget makes the target's threads look for their longest step anew.
func (t *target) forget() { clear(t.longest) }

// gap gives the longest step that thread i has seen.
func (t *target) gap(i int) time.Duration {
	var ns uint64
	for k := range 8 {
		ns |= uint64(t.longest[8*i+k]) << (8 * k)
	}
	return time.Duration(ns)
}

// run runs a program and gives its output and what it took. It has the highest of the
// ordinary priorities, if it may.
func run(path string, args ...string) (string, ran, error) { return runAs(false, path, args...) }

// runAs is run, maybe with a real-time priority: among a thousand threads that spin, every
// other program waits for a processor most of the time.
func runAs(realtime bool, path string, args ...string) (string, ran, error) {
	cmd := exec.Command(path, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return "", ran{}, err
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: -20}
	if realtime {
		attr = unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}
	}
	_ = unix.SchedSetAttr(cmd.Process.Pid, &attr, 0) // without the right to it, it waits
	err := cmd.Wait()
	r := ran{wall: time.Since(began)}
	r.user, r.system = cmd.ProcessState.UserTime(), cmd.ProcessState.SystemTime()
	return out.String(), r, err
}
