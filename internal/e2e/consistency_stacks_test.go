package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// stacksOf gives the call chains of all threads of a process.
func stacksOf(t testing.TB, pid int) []obstacle {
	t.Helper()
	var r reply
	var result struct{ Threads []obstacle }
	r.run = testtarget.RunJSON(t, &r, "stacks", "--pid", strconv.Itoa(pid))
	if err := json.Unmarshal(r.Result, &result); err != nil || r.run.Exit != 0 {
		t.Fatalf("%v\n%v", err, r.run)
	}
	return result.Threads
}

// TestStacks: the call chains of a program with more than 64 threads: deep
// recursion, a handler on a stack of its own, a frame that nobody can walk, and
// after a patch its functions among those of the program.
func TestStacks(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	const depth = 40
	p.Ask("hold", "^held 1$")
	want := make(map[int][]string) // by thread, the beginning of the chain
	begin := func(function string, x int, chain ...string) {
		t.Helper()
		tid, err := strconv.Atoi(strings.TrimPrefix(p.Ask(fmt.Sprintf("thread %s %d", function, x), "^begun "), "begun "))
		if err != nil {
			t.Fatal(err)
		}
		want[tid] = chain
	}
	recursion := append([]string{"nap"}, slices.Repeat([]string{"recurses"}, depth+1)...)
	for range 62 {
		begin("recurses", depth, append(recursion, "work", "start_thread")...)
	}
	begin("signalled", 5, "nap", "on_signal", "signalled", "work", "start_thread")
	begin("hidden", 5, "spin_without_cfi")
	begin("spins", 5, "spins", "work", "start_thread")
	awaitArrivals(t, p, len(want))

	list := stacksOf(t, p.PID())
	if n := threadsOf(t, p.PID()); len(list) != n || n < 66 {
		t.Errorf("%d chains of %d threads", len(list), n)
	}
	text := must(t, "stacks", "--pid", strconv.Itoa(p.PID())).Stdout
	for _, s := range list {
		chain, begun := want[s.Thread]
		heading := fmt.Sprintf("thread %d (%s)", s.Thread, s.Name)
		if !strings.Contains(text, heading) {
			t.Errorf("the text has no %q", heading)
		}
		if !begun {
			continue
		}
		delete(want, s.Thread)
		if complete := chain[0] != "spin_without_cfi"; s.Name != "worker" || s.Complete != complete || (s.Why == "") != complete {
			t.Errorf("%s, which is in %s: complete %v, %q", heading, chain[0], s.Complete, s.Why)
		}
		names := s.chain()
		if !s.has(chain...) || chain[0] == "spin_without_cfi" && s.has("hidden") {
			t.Errorf("%s: %q\nwant in it %q", heading, names, chain)
		}
		if n := strings.Count(strings.Join(names, " ")+" ", "recurses "); chain[1%len(chain)] == "recurses" && n != depth+1 {
			t.Errorf("%s: %d frames of recurses, want %d", heading, n, depth+1)
		}
		if signals := slices.IndexFunc(s.Chain, func(f frame) bool { return f.Signal }) >= 0; signals != slices.Contains(chain, "on_signal") {
			t.Errorf("%s: a frame interrupted by a signal: %v: %q", heading, signals, names)
		}
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
	for _, part := range []string{"consistency!recurses+0x", "consistency!on_signal+0x", "interrupted by a signal", "not complete: "} {
		if !strings.Contains(text, part) {
			t.Errorf("the text has no %q:\n%s", part, text)
		}
	}
	p.Ask("release", "^held 0$")
	p.Healthy(t)

	applyOne(t, p.PID(), with(stack, neverReturns(t))...)
	tid := stayIn(t, p, "keeps_calling")
	for _, s := range stacksOf(t, p.PID()) {
		if s.Thread != tid {
			continue
		}
		if !s.Complete || !s.has("nap", "keeps_calling", "work", "start_thread") {
			t.Errorf("through the patch: %q, %q", s.chain(), s.Why)
		}
		if i := slices.Index(s.chain(), "keeps_calling"); i >= 0 && !strings.Contains(s.Chain[i].Module, "stays") {
			t.Errorf("keeps_calling is the one in %s", s.Chain[i].Module)
		}
		goOn(t, p, "keeps_calling", 2005)
		return
	}
	t.Errorf("thread %d is not listed", tid)
}
