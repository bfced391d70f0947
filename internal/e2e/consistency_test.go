package e2e

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// stack and scanMemory are the flags that most tests of consistency give.
var (
	stack      = []string{"--consistency", "stack"}
	scanMemory = []string{"--consistency", "stack", "--scan", "memory"}
)

// consistencyTarget starts the program of functions that threads stay in.
func consistencyTarget(t testing.TB) *testtarget.Process {
	t.Helper()
	names := []string{"keeps_calling", "spins", "finishes", "finishes_again", "hidden", "left_behind", "stale", "breeds", "bred",
		"next_byte", "reads", "feeds", "next_client", "serves", "port", "recurses", "signalled", "arrived", "forgets"}
	return testtarget.Start(t, testtarget.Build(t, testtarget.Spec{
		Name: "consistency", Flags: []string{"-O2"}, Sources: []string{"consistent_busy.c", "consistent_busy_asm.S"},
		Files: map[string]string{"main.c": callerSource(names)},
	}))
}

// obstacle is what the details of "threads-busy" say of one thread, and stacks
// of any.
type obstacle struct {
	Thread         int
	Name, Function string
	Where          string
	Since          time.Time
	Walk, Hint     string
	InCall         string `json:"in_call"`
	Complete       bool   // stacks
	Why            string // stacks
	Chain          []frame
}

type frame struct {
	Function, Module string
	Offset           uint64
	PC               address
	Signal           bool
}

// chain gives the functions of the call chain, the innermost first.
func (o obstacle) chain() []string {
	var names []string
	for _, f := range o.Chain {
		names = append(names, f.Function)
	}
	return names
}

// has reports whether names occur in the chain in this order, with others between.
func (o obstacle) has(names ...string) bool {
	for _, f := range o.Chain {
		if len(names) > 0 && f.Function == names[0] {
			names = names[1:]
		}
	}
	return len(names) == 0
}

// inTheWay runs apply or revert, which must give up after a while since threads
// are in the way. Nothing of the program has changed then.
func inTheWay(t testing.TB, p *testtarget.Process, command string, flags []string, args ...string) []obstacle {
	t.Helper()
	before := testtarget.TextSnapshot(t, p.PID())
	var r reply
	// The time is for all that hotpatch does: on a busy machine that may be more.
	for timeout := 300 * time.Millisecond; ; timeout *= 4 {
		r = reply{}
		r.run = testtarget.RunJSON(t, &r, with([]string{command, "--pid", strconv.Itoa(p.PID()), "--timeout", timeout.String()}, with(flags, args...)...)...)
		late := r.Error != nil && slices.Contains([]string{"no-agent", "timeout", "not-stopped"}, r.Error.Code)
		if !late || timeout > testtarget.Timeout {
			break
		}
	}
	if r.run.Exit != 3 || r.Error == nil || r.Error.Code != "threads-busy" || r.Error.Kind != "busy" {
		t.Fatalf("it should exit with 3 and threads-busy\n%v", r.run)
	}
	var list []obstacle
	if err := json.Unmarshal(r.Error.Details, &list); err != nil || len(list) == 0 {
		t.Fatalf("%v\n%v", err, r.run)
	}
	for _, o := range list {
		if o.Function == "" || o.Hint == "" || o.Since.IsZero() {
			t.Errorf("not everything is said of what is in the way: %+v", o)
		}
		if !strings.Contains(r.Error.Why, o.Function) || o.Thread != 0 && !strings.Contains(r.Error.Why, strconv.Itoa(o.Thread)) {
			t.Errorf("the message does not name thread %d and %s: %s", o.Thread, o.Function, r.Error.Why)
		}
	}
	unchanged(t, ownedBy(before, "hotpatch"), p.PID())
	p.Healthy(t)
	return list
}

// stayIn starts a thread that stays in a function until "release", and gives its
// id. It is there when stayIn returns.
func stayIn(t testing.TB, p *testtarget.Process, function string) int {
	t.Helper()
	before := arrivals(t, p)
	tid := holdIn(t, p, function)
	awaitArrivals(t, p, before+1)
	return tid
}

// arrivals gives how often a thread has come to where it stays.
func arrivals(t testing.TB, p *testtarget.Process) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimPrefix(p.Ask("arrived 0", `^arrived\(0\)`), "arrived(0) = "))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func awaitArrivals(t testing.TB, p *testtarget.Process, n int) {
	t.Helper()
	for deadline := time.Now().Add(testtarget.Timeout); arrivals(t, p) < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the thread does not come to where it stays")
		}
	}
}

// onlyThread ends the test unless one thread is in the way, in the function.
func onlyThread(t testing.TB, list []obstacle, tid int, function, where string) obstacle {
	t.Helper()
	if len(list) != 1 || list[0].Thread != tid || list[0].Name != "worker" || list[0].Function != function || list[0].Where != where {
		t.Fatalf("in the way is %+v, want thread %d (worker), %s, %s", list, tid, function, where)
	}
	return list[0]
}

// with appends to flags.
func with(flags []string, args ...string) []string { return slices.Concat(flags, args) }

// TestBusyFunctions: a thread never leaves the function that is to be replaced, by
// itself or by what it calls. The refusal says everything; afterwards, the patch
// goes in. To take it out is the same.
func TestBusyFunctions(t *testing.T) {
	t.Parallel()
	tests := []struct {
		function, where string
		gives           int
		chain           []string
	}{
		{"keeps_calling", "stack", 6, []string{"nap", "keeps_calling", "work", "start_thread"}},
		{"spins", "pc", 7, []string{"spins", "work", "start_thread"}},
	}
	for _, test := range tests {
		t.Run(test.function, func(t *testing.T) {
			t.Parallel()
			p := consistencyTarget(t)
			patch := calcPatch(t, test.function, 1000, test.function, 1)
			tid := stayIn(t, p, test.function)
			o := onlyThread(t, inTheWay(t, p, "apply", stack, patch), tid, test.function, test.where)
			if !o.has(test.chain...) || o.Walk != "" {
				t.Errorf("the call chain is %q (%s), want %q in it", o.chain(), o.Walk, test.chain)
			}
			ticksOn(t, p)
			goOn(t, p, test.function, test.gives)
			asks(t, p, test.function, 5, test.gives)
			applyOne(t, p.PID(), with(stack, patch)...)
			asks(t, p, test.function, 5, 1005)
			revert(t, p.PID(), with(stack, "--all")...)
			asks(t, p, test.function, 5, test.gives)
		})
	}
}

// TestBusyByDefault: without a flag, nobody may be in a function that is replaced,
// nor in the patch when it is taken out.
func TestBusyByDefault(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	patch := neverReturns(t)
	tid := stayIn(t, p, "keeps_calling")
	onlyThread(t, inTheWay(t, p, "apply", nil, patch), tid, "keeps_calling", "stack")
	goOn(t, p, "keeps_calling", 6)
	applyOne(t, p.PID(), patch)
	tid = stayIn(t, p, "keeps_calling")
	onlyThread(t, inTheWay(t, p, "revert", nil, "--all"), tid, "stays@1", "stack")
	goOn(t, p, "keeps_calling", 2005)
	revert(t, p.PID())
	asks(t, p, "keeps_calling", 5, 6)
}

// TestBusyUnlessEntry: the weaker condition does not mind who is in the middle of a
// function; the call ends in the old code.
func TestBusyUnlessEntry(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	stayIn(t, p, "keeps_calling")
	applyOne(t, p.PID(), "--consistency", "entry", calcPatch(t, "keeps_calling", 1000, "keeps_calling", 1))
	asks(t, p, "keeps_calling", 5, 1005)
	goOn(t, p, "keeps_calling", 6)
	revert(t, p.PID())
	asks(t, p, "keeps_calling", 5, 6)
}

// TestConsistencyOfThePatch: a patch can demand one of the two; a flag that
// contradicts it is refused.
func TestConsistencyOfThePatch(t *testing.T) {
	t.Parallel()
	source := `#include "hotpatch.h"
HOTPATCH_NAME("demands", 1)
HOTPATCH_CONSISTENCY_%s
long keeps_calling(long x);
long keeps_calling(long x) { return x + 1000; }
`
	p := consistencyTarget(t)
	tid := stayIn(t, p, "keeps_calling")
	demands := func(what string) string { return patchOf(t, "demands.c", strings.ReplaceAll(source, "%s", what)) }
	onlyThread(t, inTheWay(t, p, "apply", nil, demands("STACK")), tid, "keeps_calling", "stack")
	applyRefused(t, p.PID(), 4, "consistency", "--consistency", "entry", demands("STACK"))
	applyRefused(t, p.PID(), 4, "consistency", "--consistency", "stack", demands("ENTRY"))
	applyOne(t, p.PID(), demands("ENTRY"))
	asks(t, p, "keeps_calling", 5, 1005)
	goOn(t, p, "keeps_calling", 6)
}

// neverReturns builds a patch whose function stays in itself while it is held. It
// gives x + 2000.
func neverReturns(t *testing.T) string { return patchOf(t, "stays.c", neverReturnsSource) }

const neverReturnsSource = `#include "hotpatch.h"
HOTPATCH_NAME("stays", 1)
HOTPATCH_REF_VAR(volatile int, held, "held")
HOTPATCH_REF_VAR(long, arrivals, "arrivals")
HOTPATCH_REF_FUNC(void, nap, (void), "nap")
long keeps_calling(long x);
long keeps_calling(long x) {
	++*arrivals;
	while (*held)
		nap();
	return x + 2000;
}
`

// TestBusyUnpatch: the patch's function does not return: the patch cannot be taken
// out, and stays in force, until it does.
func TestBusyUnpatch(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	before := testtarget.TextSnapshot(t, p.PID())
	applyOne(t, p.PID(), with(stack, neverReturns(t))...)
	tid := stayIn(t, p, "keeps_calling")
	for _, flags := range [][]string{stack, with(stack, "--unload")} {
		o := onlyThread(t, inTheWay(t, p, "revert", flags, "stays"), tid, "stays@1", "stack")
		if !o.has("nap", "keeps_calling", "work", "start_thread") {
			t.Errorf("the call chain is %q", o.chain())
		}
	}
	checkList(t, p.PID(), map[string]string{"stays@1": "active"})
	goOn(t, p, "keeps_calling", 2005)
	asks(t, p, "keeps_calling", 5, 2005)
	revert(t, p.PID(), with(stack, "--unload", "stays")...)
	asks(t, p, "keeps_calling", 5, 6)
	unchanged(t, before, p.PID())
	checkList(t, p.PID(), nil)
}

// TestBusyOneOfTwoThreads: one thread calls the function now and then, another
// never leaves it. The first is not kept from its work.
func TestBusyOneOfTwoThreads(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	patch := calcPatch(t, "recurses", 1000, "recurses", 1)
	tid := stayIn(t, p, "recurses")
	ended := p.Expect(`^finishes_again\(5\) = `)
	p.Ask("thread finishes_again 5", "^begun ")
	o := onlyThread(t, inTheWay(t, p, "apply", stack, patch), tid, "recurses", "stack")
	if len(o.Chain) < 8 || !o.has("recurses", "recurses", "recurses", "recurses", "recurses", "recurses", "work") {
		t.Errorf("recurses(5) is six frames deep, the call chain is %q", o.chain())
	}
	ticksOn(t, p)
	goOn(t, p, "recurses", 5)
	if got := ended(); got != "finishes_again(5) = 8" {
		t.Errorf("the target says %q", got)
	}
	applyOne(t, p.PID(), with(stack, patch)...)
	asks(t, p, "recurses", 5, 1005)
}

// TestBusyFinishes: a function that takes a while and is called over and over is
// replaced when it has returned: while it is held inside, nothing changes.
func TestBusyFinishes(t *testing.T) {
	t.Parallel()
	for _, function := range []string{"keeps_calling", "finishes"} {
		t.Run(function, func(t *testing.T) {
			t.Parallel()
			p := consistencyTarget(t)
			patch := calcPatch(t, function, 1000, function, 1)
			caller := function
			if function == "finishes" {
				caller = "finishes_again" // half of the time it is inside
			}
			stayIn(t, p, caller)
			c := begin(t, "apply", "--pid", strconv.Itoa(p.PID()), "--consistency", "stack", "--timeout", "30s", patch)
			if function == "keeps_calling" {
				awaitRegion(t, p)
				before := peek(t, p.PID(), listedAddress(t, p.PID(), function), 8)
				for range 20 { // it is being tried
					ticksOn(t, p)
					time.Sleep(10 * time.Millisecond)
				}
				if now := peek(t, p.PID(), exeSymbol(t, p.PID(), function), 8); !slices.Equal(now, before) {
					t.Fatalf("%s was replaced while a thread was in it", function)
				}
				goOn(t, p, function, 6)
			}
			if r := c.end(t); r.Exit != 0 {
				t.Fatal(r)
			}
			asks(t, p, function, 5, 1005)
			if function == "finishes" {
				goOn(t, p, caller, 1005)
			}
			revert(t, p.PID(), with(stack, "--all")...)
		})
	}
}

// awaitRegion waits until a hotpatch has begun to bring its patch into a process.
func awaitRegion(t *testing.T, p *testtarget.Process) {
	t.Helper()
	for deadline := time.Now().Add(testtarget.Timeout); len(mapsOf(t, p.PID(), "hotpatch")) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing of the patch is in the process")
		}
	}
}

// TestBusyBreeding: threads make threads all the time in the function that is
// replaced. It is refused or done; no thread is lost by that.
func TestBusyBreeding(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	patch := patchOf(t, "breed.c", `#include "hotpatch.h"
HOTPATCH_NAME("breed", 1)
void *breed(void *arg);
void *breed(void *arg) { return arg; }
`)
	p.Ask("hold", "^held 1$")
	asks(t, p, "breeds", 3, 3)
	list := inTheWay(t, p, "apply", stack, patch) // each is inside from its beginning to its end
	for _, o := range list {
		if o.Function != "breed" {
			t.Errorf("in the way is %+v", o)
		}
	}
	first := p.Ask("bred 1", `^bred\(1\)`)
	for deadline := time.Now().Add(testtarget.Timeout); p.Ask("bred 1", `^bred\(1\)`) == first; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no threads are made any more")
		}
	}
	p.Ask("release", "^held 0$")
	for deadline := time.Now().Add(testtarget.Timeout); p.Ask("bred 0", `^bred\(0\)`) != "bred(0) = 0"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("threads have not ended: %s", p.Ask("bred 0", `^bred\(0\)`))
		}
	}
	applyOne(t, p.PID(), with(stack, patch)...)
	revert(t, p.PID(), with(stack, "--all")...)
	p.Healthy(t)
}

// TestBusyWithoutUnwindInformation: the caller of the function is hidden from every
// unwinder by assembly without call frame information. It counts all the same, when
// a patch goes in and when it comes out; what has returned is clear.
func TestBusyWithoutUnwindInformation(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	before := testtarget.TextSnapshot(t, p.PID())
	patch := patchOf(t, "hidden.c", `#include "hotpatch.h"
HOTPATCH_NAME("hidden", 1)
HOTPATCH_REF_VAR(long, arrivals, "arrivals")
HOTPATCH_REF_FUNC(long, spin, (long x), "spin_without_cfi")
long hidden(long x);
long hidden(long x) {
	++*arrivals;
	return spin(x) + 1000;
}
`)
	blocked := func(command, function string, args ...string) {
		t.Helper()
		tid := stayIn(t, p, "hidden")
		o := onlyThread(t, inTheWay(t, p, command, stack, args...), tid, function, "stack")
		if o.Walk == "" || len(o.Chain) == 0 || o.Chain[0].Function != "spin_without_cfi" || o.has("hidden") {
			t.Errorf("the walk ends in spin_without_cfi, and says so: %q, %q", o.chain(), o.Walk)
		}
	}
	blocked("apply", "hidden", patch)
	goOn(t, p, "hidden", 9)
	applyOne(t, p.PID(), with(stack, patch)...)
	blocked("revert", "hidden@1", "--unload", "--all")
	goOn(t, p, "hidden", 1005)
	revert(t, p.PID(), with(stack, "--unload", "--all")...)
	asks(t, p, "hidden", 5, 9)
	unchanged(t, before, p.PID())
	checkList(t, p.PID(), nil)
	p.Healthy(t)
}

// TestBusySignal: the function was interrupted by a signal, whose handler runs on a
// stack of its own.
func TestBusySignal(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	patch := calcPatch(t, "signalled", 1000, "signalled", 1)
	tid := stayIn(t, p, "signalled")
	o := onlyThread(t, inTheWay(t, p, "apply", stack, patch), tid, "signalled", "stack")
	if !o.has("nap", "on_signal", "signalled", "work", "start_thread") {
		t.Errorf("the call chain is %q (%s)", o.chain(), o.Walk)
	}
	goOn(t, p, "signalled", 12)
	applyOne(t, p.PID(), with(stack, patch)...)
	asks(t, p, "signalled", 5, 1005)
}
