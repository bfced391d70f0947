package e2e

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// The soak: everything that may happen to a hotpatch or to its target, again and
// again, with the figures of it. scripts/soak runs it for as long as is asked for;
// without that it is a short one, in which every class has its turn.

// figures are what a class of trials has come to.
type figures struct {
	trials   int // things that were done to the target or to hotpatch
	survived int // after which the target went on as if nothing had been
	counted  int // events that were counted: signals, calls, rounds
	lost     int // of those, or wrong
	added    int // of those, or left behind
	busy     int // commands that ended with "not now" (exit status 3) and were repeated
	note     string
}

// does runs a command of hotpatch that must succeed. On a busy machine the answer may be
// "not now", with the target untouched; then it is given again.
func (f *figures) does(t *testing.T, args ...string) {
	t.Helper()
	for range 5 {
		r := testtarget.Run(t, args...)
		if r.Exit == 0 {
			return
		}
		if r.Exit != 3 {
			t.Fatal(r)
		}
		t.Logf("again: %v", r)
		f.busy++
	}
	t.Fatalf("it does not succeed: %v", args)
}

// budget says how long a class goes on: until a time, and for so many trials at least.
type budget struct {
	until time.Time
	least int
	long  bool // a soak that was asked for
}

// more reports whether a class that has done n trials goes on.
func (b budget) more(n int) bool { return n < b.least || time.Now().Before(b.until) }

// soakClass is one kind of trials.
type soakClass struct {
	name string
	part int // of the time, in percent
	// long and short are the least numbers of trials: of a soak that was asked for,
	// and of the short one.
	long, short int
	run         func(*testing.T, budget) figures
}

var soakClasses = []soakClass{
	{"killed at each system call", 35, 4000, 24, soakSystemCalls},
	{"killed at any time", 10, 800, 6, soakKills},
	{"INT, TERM, HUP, lost terminal", 5, 200, 4, soakStops},
	{"out of memory", 2, 40, 4, soakMemory},
	{"signals", 10, 200, 3, soakSignals},
	{"blocking system calls", 8, 200, 3, soakCalls},
	{"registers", 6, 200, 3, soakRegisters},
	{"restartable sequences", 2, 100, 3, soakSequences},
	{"states of processes", 6, 40, 4, soakStates},
	{"several at once", 4, 100, 2, soakSeveral},
	{"residue", 12, 10000, 40, soakResidue},
}

// TestSoak runs every class. HOTPATCH_SOAK is the duration of a long one, and
// HOTPATCH_SOAK_FIGURES the file to which its figures are written, a line for each
// class; HOTPATCH_SOAK_CLASS is the name of the only one to run.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("the soak takes a minute and a half, and the parts of it have short tests of their own")
	}
	duration, long := 25*time.Second, false
	if s := os.Getenv("HOTPATCH_SOAK"); s != "" {
		var err error
		if duration, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
		long = true
	}
	if !long {
		t.Parallel()
	}
	only := os.Getenv("HOTPATCH_SOAK_CLASS")
	for _, c := range append(soakClasses, soakServers()...) {
		if only != "" && c.name != only {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			if !long {
				t.Parallel()
			}
			b := budget{time.Now().Add(duration * time.Duration(c.part) / 100), c.short, long}
			if long {
				b.least = c.long
			}
			began := time.Now()
			f := c.run(t, b)
			if f.busy > 0 {
				f.note += fmt.Sprintf("; %d commands ended with \"not now\" and were repeated", f.busy)
			}
			line := fmt.Sprintf("| %s | %d | %d | %s | %d | %d | %s |", c.name, f.trials, f.survived, many(f.counted), f.lost, f.added, f.note)
			t.Logf("%s %v", line, time.Since(began).Round(time.Second))
			if f.trials < b.least || f.survived != f.trials || f.lost != 0 || f.added != 0 {
				t.Errorf("%+v", f)
			}
			if path := os.Getenv("HOTPATCH_SOAK_FIGURES"); path != "" {
				file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintln(file, line)
				if err := file.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// many writes a number so that it can be read, and none as nothing.
func many(n int) string {
	s := strconv.Itoa(n)
	if n == 0 {
		return ""
	}
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// soakTarget is a seed program to which trials are done, each of which must leave it
// as it was.
type soakTarget struct {
	c        seedCase
	program  string
	p1, p2   string
	p        *testtarget.Process
	original testtarget.Snapshot
	trials   int
}

func newSoakTarget(t *testing.T, threads int) *soakTarget {
	t.Helper()
	c := seedCase{"g++", "-O2", true, false, threads}
	s := &soakTarget{c: c, program: c.program(t), p1: c.patch(t, 1), p2: c.patch(t, 2)}
	s.fresh(t)
	return s
}

// fresh gives the target another process, which was never patched.
func (s *soakTarget) fresh(t *testing.T) {
	t.Helper()
	if s.p != nil {
		s.p.Stop()
	}
	s.p = testtarget.Start(t, s.program, testtarget.Args("-q", strconv.Itoa(s.c.threads), "1"))
	s.original = testtarget.TextSnapshot(t, s.p.PID())
	s.trials = 0
}

func (s *soakTarget) pid() string { return strconv.Itoa(s.p.PID()) }

// settle is settles. Every so many trials the process is another one.
func (s *soakTarget) settle(t *testing.T, when string) {
	t.Helper()
	settles(t, s.p, when, s.p2, s.original, s.c.threads)
	if s.trials++; s.trials == 25 {
		s.fresh(t)
	}
}
