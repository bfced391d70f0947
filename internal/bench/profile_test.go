package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/testtarget"
)

// BenchmarkProfile says where the time of a pause goes: the system calls within it, as
// the kernel's tracepoints time them (perf(1)), of the floor and of hotpatch. What the
// tracing adds itself makes both longer.
func BenchmarkProfile(b *testing.B) {
	testtarget.Need(b, "perf")
	testtarget.NeedRoot(b)
	for _, threads := range []int{1, 128} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			p := startTarget(b, threads, "sleep", 1)
			var floor, apply profiles
			for b.Loop() {
				floor = append(floor, profileOf(b, p.floorBin, append([]string{strconv.Itoa(p.PID()), "1"}, p.sites...)...))
				apply = append(apply, profileOf(b, testtarget.Hotpatch(b), "apply", "--pid", strconv.Itoa(p.PID()), p.patch))
				p.revert("stack")
			}
			report(b, fmt.Sprintf("profile-%d", threads), profileTable(floor, apply))
			p.Healthy(b)
		})
	}
}

// profile is what one thread did in a pause, by what it did.
type profile map[string]spent

type spent struct {
	calls int
	time  time.Duration
}

type profiles []profile

// between is what lies between the system calls.
const between = "in between"

// steps are what a profile can have, in the order in which it is shown.
var steps = []string{"ptrace INTERRUPT", "wait4", "ptrace GETREGS", "process_vm_readv", "pwrite64", "pread64", "fstat", "sched_setscheduler", "ptrace DETACH", "other system calls", between}

func (list profiles) median(step string) (calls int, took time.Duration) {
	var times samples
	for _, p := range list {
		times = append(times, p[step].time)
		calls = p[step].calls
	}
	return calls, times.median()
}

func profileTable(floor, apply profiles) string {
	t := newTable("step", "floor: calls", "µs", "hotpatch: calls", "µs")
	for _, step := range steps {
		a, floorTime := floor.median(step)
		c, applyTime := apply.median(step)
		if a == 0 && c == 0 && step != between {
			continue
		}
		t.row(step, strconv.Itoa(a), micros(floorTime), strconv.Itoa(c), micros(applyTime))
	}
	return t.String()
}

// A line of perf script.
var traced = regexp.MustCompile(`\s(\d+) \[\d+\]\s+(\d+)\.(\d+):\s+raw_syscalls:sys_(enter|exit): NR (\d+) (?:\(([0-9a-f]+),|=)`)

type event struct {
	tid, nr int
	arg     uint64
	at      time.Duration
	enter   bool
}

// profileOf runs a program that stops a target and gives the profile of its pause.
func profileOf(b *testing.B, path string, args ...string) profile {
	b.Helper()
	data := filepath.Join(b.TempDir(), "perf.data")
	defer os.Remove(data)
	record := append([]string{"record", "-q", "-e", "raw_syscalls:sys_enter", "-e", "raw_syscalls:sys_exit", "-o", data, "--", path}, args...)
	if out, err := exec.Command("perf", record...).CombinedOutput(); err != nil {
		b.Skipf("perf cannot trace system calls here: %v\n%s", err, out)
	}
	out, err := exec.Command("perf", "script", "--ns", "-i", data).Output()
	if err != nil {
		b.Fatalf("perf script: %v", err)
	}
	var events []event
	for _, m := range traced.FindAllStringSubmatch(string(out), -1) {
		number := func(s string, base int) uint64 { n, _ := strconv.ParseUint(s, base, 64); return n }
		events = append(events, event{
			tid: int(number(m[1], 10)), nr: int(number(m[5], 10)), arg: number(m[6], 16), enter: m[4] == "enter",
			at: time.Duration(number(m[2], 10))*time.Second + time.Duration(number(m[3], 10)),
		})
	}
	return pauseIn(b, events)
}

// pauseIn finds the pause in what a program did: from the first interrupt after the
// last seize to the last detach.
func pauseIn(b *testing.B, events []event) profile {
	b.Helper()
	request := func(want uint64) func(event) bool {
		return func(e event) bool { return e.enter && e.nr == unix.SYS_PTRACE && e.arg == want }
	}
	last := func(list []event, f func(event) bool) int {
		for i := len(list) - 1; i >= 0; i-- {
			if f(list[i]) {
				return i
			}
		}
		return -1
	}
	seize := last(events, request(unix.PTRACE_SEIZE))
	if seize < 0 {
		b.Fatalf("no seize in %d events", len(events))
	}
	tid := events[seize].tid
	events = slices.DeleteFunc(events[seize:], func(e event) bool { return e.tid != tid })
	first, end := slices.IndexFunc(events, request(unix.PTRACE_INTERRUPT)), last(events, request(unix.PTRACE_DETACH))
	if first < 0 || end < first || end+1 >= len(events) {
		b.Fatalf("no pause in %d events of thread %d", len(events), tid)
	}
	p, before := profile{}, events[first].at
	for i := first; i <= end; i += 2 {
		enter, exit := events[i], events[i+1]
		add := func(step string, d time.Duration) { p[step] = spent{p[step].calls + 1, p[step].time + d} }
		if i > first {
			add(between, enter.at-before)
		}
		add(stepOf(enter), exit.at-enter.at)
		before = exit.at
	}
	return p
}

func stepOf(e event) string {
	switch e.nr {
	case unix.SYS_PTRACE:
		switch e.arg {
		case unix.PTRACE_INTERRUPT:
			return "ptrace INTERRUPT"
		case unix.PTRACE_GETREGS:
			return "ptrace GETREGS"
		case unix.PTRACE_DETACH:
			return "ptrace DETACH"
		}
	case unix.SYS_WAIT4:
		return "wait4"
	case unix.SYS_PROCESS_VM_READV:
		return "process_vm_readv"
	case unix.SYS_PWRITE64:
		return "pwrite64"
	case unix.SYS_PREAD64:
		return "pread64"
	case unix.SYS_FSTAT:
		return "fstat"
	case unix.SYS_SCHED_SETSCHEDULER:
		return "sched_setscheduler"
	}
	return "other system calls"
}
