package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// beginJSON starts a hotpatch and gives a function that waits for its answer.
func beginJSON(t *testing.T, args ...string) (end func() reply) {
	t.Helper()
	c := begin(t, append(args, "--json")...)
	return func() reply {
		t.Helper()
		r := reply{run: c.end(t)}
		if err := json.Unmarshal([]byte(r.run.Stdout), &r); err != nil {
			t.Fatalf("%v\n%v", err, r.run)
		}
		return r
	}
}

// TestWaitingForInput: a thread waits nearly always inside the function that is
// replaced, for a byte or for a client. The patch goes in when it comes, without
// stopping the process over and over before: the process's other threads run, and
// the tries are few. The call that has waited ends as the old code ends.
func TestWaitingForInput(t *testing.T) {
	t.Parallel()
	tests := []struct {
		loop, function string
		feed           func(t *testing.T, p *testtarget.Process)
	}{
		{"reads", "next_byte", func(t *testing.T, p *testtarget.Process) { asks(t, p, "feeds", 1, 1) }},
		{"serves", "next_client", func(t *testing.T, p *testtarget.Process) {
			client, err := net.Dial("tcp", "127.0.0.1:"+strings.TrimPrefix(p.Ask("port 0", `^port\(`), "port(0) = "))
			if err != nil {
				t.Fatal(err)
			}
			client.Close()
		}},
	}
	for _, test := range tests {
		t.Run(test.function, func(t *testing.T) {
			t.Parallel()
			p := consistencyTarget(t)
			patch := calcPatch(t, test.function, 1000, test.function, 1)
			before := arrivals(t, p)
			const calls = 40
			ended := p.Expect(fmt.Sprintf(`^%s\(%d\) = `, test.loop, calls))
			p.Ask(fmt.Sprintf("thread %s %d", test.loop, calls), "^begun ")
			awaitArrivals(t, p, before+1)
			c := begin(t, "apply", "--pid", strconv.Itoa(p.PID()), "--consistency", "stack", "--timeout", "10m", "--json", patch)
			awaitRegion(t, p)
			// It waits; the process does not. On a busy machine, a round takes long.
			for began, rounds := time.Now(), 0; rounds < 3 || time.Since(began) < 500*time.Millisecond; rounds++ {
				ticksOn(t, p)
			}
			// What comes once it waits is enough; what comes before is for the old code.
			fed := 0
			for running := true; running && fed < calls; {
				test.feed(t, p)
				fed++
				for deadline := time.Now().Add(testtarget.Timeout / 10); running && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
					running = !strings.HasPrefix(statusField(t, c.cmd.Process.Pid, "State"), "Z")
				}
			}
			r := reply{run: c.end(t)}
			if err := json.Unmarshal([]byte(r.run.Stdout), &r); err != nil {
				t.Fatalf("%v\n%v", err, r.run)
			}
			results := r.applied(t)
			if r.run.Exit != 0 || len(results) != 1 || results[0].State != "applied" {
				t.Fatal(r.run)
			}
			// One try finds the thread, one knows its call chain, one finds it outside;
			// some more for threads that a busy machine does not stop in time.
			if results[0].Tries < 2 || results[0].Tries > 12+3*(fed-1) {
				t.Errorf("%d tries, fed %d times\n%v", results[0].Tries, fed, r.run)
			}
			// The calls that got something were in the old code to their ends, the others
			// were not.
			got := ended()
			old := 0
			for old = 1; old <= fed && got != fmt.Sprintf("%s(%d) = %d", test.loop, calls, old+1000*(calls-old)); old++ {
			}
			if old > fed {
				t.Errorf("fed %d times, the target says %q", fed, got)
			}
			asks(t, p, test.function, 5, 1005)
			p.Healthy(t)
		})
	}
}

// TestWaitingInVain: the input never comes. Then the message says who waits where,
// since when, and what would help.
func TestWaitingInVain(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	patch := calcPatch(t, "next_byte", 1000, "next_byte", 1)
	before := arrivals(t, p)
	ended := p.Expect(`^reads\(2\) = `)
	begun := p.Ask("thread reads 2", "^begun ")
	tid, err := strconv.Atoi(strings.TrimPrefix(begun, "begun "))
	if err != nil {
		t.Fatal(err)
	}
	awaitArrivals(t, p, before+1)
	start := time.Now()
	o := onlyThread(t, inTheWay(t, p, "apply", stack, patch), tid, "next_byte", "stack")
	if !o.has("read", "next_byte", "reads", "work", "start_thread") && !o.has("__libc_read", "next_byte", "reads", "work", "start_thread") {
		t.Errorf("the call chain is %q (%s)", o.chain(), o.Walk)
	}
	if o.Since.Before(start) || o.Since.After(time.Now()) || o.InCall != "in system call 0" || !strings.Contains(o.Hint, "waits inside") {
		t.Errorf("it waits in system call 0 since a moment after %v: %+v", start, o)
	}
	text := refused(t, 3, "threads-busy", "apply", "--pid", strconv.Itoa(p.PID()), "--consistency", "stack", "--timeout", "1s", patch).Stderr
	for _, want := range []string{strconv.Itoa(tid), "worker", "next_byte", "reads", "for at least", "--timeout"} {
		if !strings.Contains(text, want) {
			t.Errorf("the message does not say %q:\n%s", want, text)
		}
	}
	ticksOn(t, p)
	asks(t, p, "feeds", 2, 2)
	if got := ended(); got != "reads(2) = 2" {
		t.Errorf("the target says %q", got)
	}
	applyOne(t, p.PID(), with(stack, patch)...)
	asks(t, p, "next_byte", 5, 1005)
}

// TestMaxPause: what would stop the process for longer than allowed is given up at
// once, however long the timeout is, and nothing has changed.
func TestMaxPause(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	patch := calcPatch(t, "keeps_calling", 1000, "keeps_calling", 1)
	before := testtarget.TextSnapshot(t, p.PID())
	end := beginJSON(t, "apply", "--pid", strconv.Itoa(p.PID()), "--consistency", "stack", "--timeout", "10m", "--max-pause", "1us", patch)
	if r := end(); r.run.Exit != 3 || r.Error == nil || r.Error.Code != "max-pause" || r.Error.Kind != "busy" {
		t.Fatalf("it should exit with 3 and max-pause\n%v", r.run)
	}
	unchanged(t, before, p.PID())
	asks(t, p, "keeps_calling", 5, 6)
	p.Healthy(t)
	applyOne(t, p.PID(), with(stack, "--max-pause", "1m", patch)...)
	asks(t, p, "keeps_calling", 5, 1005)
	refused(t, 3, "max-pause", "revert", "--pid", strconv.Itoa(p.PID()), "--consistency", "stack", "--max-pause", "1us", "--timeout", "10m", "--all")
	asks(t, p, "keeps_calling", 5, 1005)
	revert(t, p.PID(), "--consistency", "stack", "--max-pause", "1m", "--all")
	asks(t, p, "keeps_calling", 5, 6)
}

// TestStaleWords: a return address that a call has left behind, in a frame that
// lives on, looks as if somebody were to return into the function. A walk clears it.
func TestStaleWords(t *testing.T) {
	t.Parallel()
	p := consistencyTarget(t)
	patch := calcPatch(t, "left_behind", 1000, "left_behind", 1)
	tid := stayIn(t, p, "stale")

	// The word is really there, between the stack pointer and the stack's end.
	entry := exeSymbol(t, p.PID(), "left_behind")
	sp := stackPointer(t, p.PID(), tid)
	found := 0
	words := peek(t, p.PID(), sp, int(mappingAt(t, p.PID(), sp).end-sp)&^7)
	for ; len(words) > 0; words = words[8:] {
		if v := binary.LittleEndian.Uint64(words); v > entry && v < entry+16 {
			found++
		}
	}
	if found == 0 {
		t.Fatal("nothing was left behind")
	}
	if r := applyOne(t, p.PID(), with(stack, patch)...); r.Tries < 2 {
		t.Errorf("%d try: nothing was in the way", r.Tries)
	}
	asks(t, p, "left_behind", 5, 1005)
	goOn(t, p, "stale", 11)
}

// stackPointer gives where the stack of a thread that sleeps begins.
func stackPointer(t *testing.T, pid, tid int) uint64 {
	t.Helper()
	for deadline := time.Now().Add(testtarget.Timeout); time.Now().Before(deadline); {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/syscall", pid, tid))
		if err != nil {
			t.Fatal(err)
		}
		if fields := strings.Fields(string(content)); len(fields) == 9 { // "running" otherwise
			sp, err := strconv.ParseUint(fields[7], 0, 64)
			if err != nil {
				t.Fatal(err)
			}
			return sp &^ 7
		}
	}
	t.Fatalf("thread %d never sleeps", tid)
	return 0
}

// TestCoroutines: a suspended coroutine has the function on a stack that is no
// thread's. --scan memory finds it, however its context is kept; when it has left,
// the patch goes in.
func TestCoroutines(t *testing.T) {
	t.Parallel()
	inside := func(t *testing.T) string { return calcPatch(t, "inside", 1000, "coroutine", 1) }
	tests := []struct {
		name     string
		spec     testtarget.Spec
		patch    func(t *testing.T) string
		resume   string   // makes it run on, and its answer
		leave    []string // makes it leave the function: pairs of a line and an answer
		after    string   // enters the function again, and the new answer
		function string
		still    int      // how many of leave's pairs leave somebody inside
		last     []string // flags that bring the patch in then
	}{
		{"swapcontext", testtarget.Spec{Sources: []string{"coroutine.c"}, Flags: []string{"-O2"}}, inside,
			"step=^step [0-9]+$", []string{"leave=^left 77$"}, "step=^left 1070$", "inside", 0,
			stack}, // its stack may keep the return address that it has used
		{"sigsetjmp, two of them", testtarget.Spec{Sources: []string{"consistent_coro.c"}, Flags: []string{"-O2"}}, inside,
			"step 1=^step 1 [0-9]+$", []string{"leave 0=^left 0 77$", "leave 1=^left 1 77$"}, "", "inside", 1, stack},
		{"C++20", testtarget.Spec{Sources: []string{"consistent_generator.cc"}, Flags: []string{"-O2", "-std=c++20", "-fcoroutines"}},
			func(t *testing.T) string {
				return testtarget.Build(t, testtarget.Spec{Sources: []string{"consistent_generator_p1.cc"}, Shared: true, Flags: []string{"-O2", "-std=c++20", "-fcoroutines"}})
			},
			"next=^next [0-9]+$", []string{"drop=^dropped$"}, "again=^again 1001$", "counting(long)", 0, scanMemory},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.name == "C++20" {
				testtarget.NeedFlags(t, "g++", "-std=c++20", "-fcoroutines")
			}
			p := testtarget.Start(t, testtarget.Build(t, test.spec))
			ask := func(pair string) {
				t.Helper()
				line, answer, _ := strings.Cut(pair, "=")
				p.Ask(line, answer)
			}
			patch := test.patch(t)
			blocked := func() {
				t.Helper()
				list := inTheWay(t, p, "apply", scanMemory, patch)
				if len(list) != 1 || list[0].Thread != 0 || list[0].Function != test.function || list[0].Where != "memory" || !strings.Contains(list[0].Hint, "coroutine") {
					t.Fatalf("in the way is %+v, want a word of memory for %s", list, test.function)
				}
				ask(test.resume)
			}
			ask(test.resume)
			blocked()
			for i, pair := range test.leave {
				ask(pair)
				if i < test.still {
					blocked()
				}
			}
			applyOne(t, p.PID(), with(test.last, patch)...)
			if test.after != "" {
				ask(test.after)
			}
			p.Healthy(t)
		})
	}
}
