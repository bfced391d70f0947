package e2e

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"hotpatch/internal/testtarget"
)

// consistentCounts is what the consistent target says of itself.
type consistentCounts struct {
	ops, old, new, mixed, wrong, handled int
	now                                  string
}

func counted(t testing.TB, p *testtarget.Process) (c consistentCounts) {
	t.Helper()
	line := p.Ask("?", "^ops ")
	if _, err := fmt.Sscanf(line, "ops %d old %d new %d mixed %d wrong %d handled %d now %s", &c.ops, &c.old, &c.new, &c.mixed, &c.wrong, &c.handled, &c.now); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return c
}

// fresh waits until every thread has begun and ended an operation, and gives
// how many those begun since were, by their versions.
func fresh(t testing.TB, p *testtarget.Process) (old, new, mixed int) {
	t.Helper()
	line := p.Ask("fresh", "^fresh ")
	if _, err := fmt.Sscanf(line, "fresh old %d new %d mixed %d", &old, &new, &mixed); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return old, new, mixed
}

const consistentThreads = 64

// consistentTarget starts the target that checks that no operation mixes versions.
func consistentTarget(t testing.TB) (p *testtarget.Process, patch string) {
	t.Helper()
	patch = testtarget.Build(t, testtarget.Spec{Sources: []string{"consistent_p1.cc"}, Shared: true, Flags: []string{"-O2"}})
	path := testtarget.Build(t, testtarget.Spec{Sources: []string{"consistent.cc", "consistent_asm.S"}, Flags: []string{"-O2"}})
	return testtarget.Start(t, path, testtarget.Args(strconv.Itoa(consistentThreads))), patch
}

// consistentRounds is how often the patch goes in and comes out. With
// HOTPATCH_TEST_LONG=1 it is 1000 times; scripts/torture runs that.
func consistentRounds() int {
	switch {
	case os.Getenv("HOTPATCH_TEST_LONG") == "1":
		return 1000
	case testing.Short():
		return 5
	}
	return 50
}

// TestNoOperationMixesVersions: threads call functions that belong together, by
// deep and recursive stacks, exceptions in flight, longjmp, assembly without unwind
// information, and from signal handlers. However often these functions are replaced
// and put back: every operation is all old or all new.
func TestNoOperationMixesVersions(t *testing.T) {
	t.Parallel()
	p, patch := consistentTarget(t)
	original := testtarget.TextSnapshot(t, p.PID())
	check := func(when, want string, all bool) {
		t.Helper()
		c := counted(t, p)
		if c.mixed != 0 || c.wrong != 0 {
			t.Fatalf("%s: %+v", when, c)
		}
		if c.now != want {
			t.Fatalf("%s: an operation is %s, want %s", when, c.now, want)
		}
		if !all {
			return
		}
		switch old, new, mixed := fresh(t, p); {
		case mixed != 0, want == "old" && (new != 0 || old < consistentThreads), want == "new" && (old != 0 || new < consistentThreads):
			t.Fatalf("%s: of the operations begun since, %d are old, %d new, %d mixed", when, old, new, mixed)
		}
	}
	check("before", "old", true)
	tries, late, rounds := 0, 0, consistentRounds()
	// It may be "not now" when the machine is busy, which is no mixture, but not always.
	often := func(change func() int) {
		t.Helper()
		for range 10 {
			switch exit := change(); exit {
			case 0:
				return
			case 3:
				late++
			default:
				t.Fatalf("it ends with %d", exit)
			}
		}
		t.Fatal("it is never the time")
	}
	for i := range rounds {
		when := fmt.Sprintf("round %d of %d", i+1, rounds)
		all := i%10 == 0
		often(func() int {
			r, results := tryApply(t, p.PID(), with(stack, "--timeout", "1m", patch)...)
			if r.run.Exit == 0 {
				tries += results[0].Tries
			}
			return r.run.Exit
		})
		check(when+", applied", "new", all)
		often(func() int {
			return testtarget.Run(t, with([]string{"revert", "--pid", strconv.Itoa(p.PID()), "--timeout", "1m", "--all"}, stack...)...).Exit
		})
		check(when+", reverted", "old", all)
	}
	c := counted(t, p)
	if c.old == 0 || c.new == 0 || c.handled == 0 {
		t.Errorf("not everything was tried: %+v", c)
	}
	t.Logf("%d rounds, %d operations (%d of them in signal handlers), %d old, %d new; %d tries for %d applies",
		rounds, c.ops, c.handled, c.old, c.new, tries, rounds)
	if late > 0 {
		t.Logf("%d times it was not now", late)
	}
	unchanged(t, original, p.PID())
	p.Healthy(t)
}

// TestEntryMixesVersions proves that the target of the test above notices: under
// the weaker condition, operations do mix versions.
func TestEntryMixesVersions(t *testing.T) {
	lengthy(t)
	t.Parallel()
	p, patch := consistentTarget(t)
	const most = 500
	for i := range most {
		applyOne(t, p.PID(), "--consistency", "entry", patch)
		revert(t, p.PID(), "--consistency", "entry", "--all")
		// Those in the middle then have ended when everybody has begun a new one.
		fresh(t, p)
		if c := counted(t, p); c.mixed > 0 {
			t.Logf("after %d rounds: %+v", i+1, c)
			p.Healthy(t)
			return
		}
	}
	t.Fatalf("no operation has mixed versions in %d rounds: %+v", most, counted(t, p))
}
