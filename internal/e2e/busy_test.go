package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// busyAsm has functions in which a thread can be held (variable held of a caller)
// with its program counter, or an address to which it returns, at a known place.
const busyAsm = `
	.text
#define FUNCTION(name) .globl name; .type name, @function; name: .cfi_startproc
#define END(name) .cfi_endproc; .size name, . - name

// Loops whose back edge goes to +n, in which the processor is at +n or at +n+7.
// They give x + n.
.macro WALL
	.type wall\@, @function
wall\@:	ret
	.size wall\@, 1
.endm
#define SPIN(n) \
	.p2align 4; \
	WALL; \
FUNCTION(spin##n); \
	.nops	n, 1; \
1:	cmpl	$0, held(%rip); \
	jne	1b; \
	lea	n(%rdi), %rax; \
	ret; \
END(spin##n); \
	.p2align 4
SPIN(2)
SPIN(3)
SPIN(4)
SPIN(5)
SPIN(6)
SPIN(7)
SPIN(8)
SPIN(9)
SPIN(10)
SPIN(11)
SPIN(12)
SPIN(13)
SPIN(14)
SPIN(20)

// Calls that return to +n of the function, where the callee spins while held.
// They give x + n.
#define CALL_AT(n, fill) \
	.p2align 4; \
FUNCTION(return_to_##n); \
	fill; \
	call	wait_here; \
	lea	n(%rdi), %rax; \
	nopl	0(%rax); \
	nopl	0(%rax); \
	nopl	0(%rax); \
	ret; \
END(return_to_##n); \
	.p2align 4
CALL_AT(5, )
CALL_AT(9, .nops 4)
CALL_AT(13, .nops 8)
CALL_AT(14, .nops 9)

// An indirect call that returns to +2, inside even the shortest jump.
	.p2align 4
FUNCTION(return_to_2)
	call	*%rsi
	lea	2(%rdi), %rax
	ret
END(return_to_2)
	.p2align 4
FUNCTION(call_return_to_2)
	lea	wait_here(%rip), %rsi
	sub	$8, %rsp
	.cfi_adjust_cfa_offset 8
	call	return_to_2
	add	$8, %rsp
	.cfi_adjust_cfa_offset -8
	ret
END(call_return_to_2)

	.p2align 4
	.type wait_here, @function
wait_here:
	.cfi_startproc
	cmpl	$0, held(%rip)
	jne	wait_here
	ret
	.cfi_endproc
	.size wait_here, . - wait_here

// The instruction at +2 faults. The handler, which is in busy.c, spins while held
// and goes on behind the instruction. It gives x + 3.
	.p2align 4
FUNCTION(faults_at_2)
	xor	%eax, %eax
	mov	(%rax), %rax
	lea	3(%rdi), %rax
	ret
END(faults_at_2)
	.p2align 4

// Its first bytes are as many instructions.
FUNCTION(many_boundaries)
	nop; nop; nop; nop; nop; nop; nop
	nop; nop; nop; nop; nop; nop; nop
	lea	1(%rdi), %rax
	ret
END(many_boundaries)
	.p2align 4
	.section .note.GNU-stack, "", @progbits
`

// busySource is the rest of the target. faults_below calls, on the main stack of
// its thread, a function that faults, so that the handler, which has a stack of
// its own, keeps return_to_9 waiting: return_via_fault.
const busySource = `
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>

extern volatile int held;
long faults_at_2(long), many_boundaries(long);

static void on_fault(int number, siginfo_t *info, void *context) {
	while (held)
		;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 3;
}
static void handle(int flags) {
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | flags};
	sigaction(SIGSEGV, &action, NULL);
}
long fault_here(long x) { handle(0); return faults_at_2(x); }
long fault_on_other_stack(long x) {
	static __thread char stack[65536];
	stack_t other = {.ss_sp = stack, .ss_size = sizeof stack}, off = {.ss_flags = SS_DISABLE};
	sigaltstack(&other, NULL);
	handle(SA_ONSTACK);
	x = faults_at_2(x);
	sigaltstack(&off, NULL);
	return x;
}

// hammer N: N threads call many_boundaries for ever, with short rests for whoever
// else wants the processor, and count what they get.
// hammered: how often it was 1 more, 1000 more, 2000 more, and anything else.
static unsigned long seen[4];
static void *hammer_thread(void *arg) {
	for (long x = 0;; x++) {
		if (x % 5000 == 0)
			usleep(1000);
		long more = many_boundaries(x) - x;
		__atomic_add_fetch(&seen[more == 1 ? 0 : more == 1000 ? 1 : more == 2000 ? 2 : 3], 1, __ATOMIC_RELAXED);
	}
	return arg;
}
long hammer(long n) {
	pthread_t thread;
	for (long i = 0; i < n; i++)
		if (pthread_create(&thread, NULL, hammer_thread, NULL) != 0)
			exit(1);
	return n;
}
long hammered(long which) { return __atomic_exchange_n(&seen[which], 0, __ATOMIC_RELAXED); }
`

func busyTarget(t testing.TB) string {
	t.Helper()
	names := []string{"fault_here", "fault_on_other_stack", "faults_at_2", "many_boundaries", "hammer", "hammered",
		"call_return_to_2"}
	for _, n := range []int{2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 20} {
		names = append(names, fmt.Sprintf("spin%d", n))
	}
	for _, n := range []int{5, 9, 13, 14} {
		names = append(names, fmt.Sprintf("return_to_%d", n))
	}
	return testtarget.Build(t, testtarget.Spec{Name: "busy", Flags: []string{"-O2"}, Files: map[string]string{
		"main.c": callerSource(names), "busy.c": busySource, "busy_asm.S": busyAsm, "reserve.c": reserveSource}})
}

// holdIn starts a thread that stays in a function until "release", and gives its
// id.
func holdIn(t testing.TB, p *testtarget.Process, function string) int {
	t.Helper()
	p.Ask("hold", "^held 1$")
	begun := p.Ask("thread "+function+" 5", "^begun ")
	tid, err := strconv.Atoi(strings.TrimPrefix(begun, "begun "))
	if err != nil {
		t.Fatal(err)
	}
	return tid
}

// goOn releases the thread in a function and checks what that gives.
func goOn(t testing.TB, p *testtarget.Process, function string, want int) {
	t.Helper()
	ended := p.Expect(`^` + function + `\(5\) = `) // maybe before the answer
	p.Ask("release", "^held 0$")
	if got, line := ended(), fmt.Sprintf("%s(5) = %d", function, want); got != line {
		t.Fatalf("the target says %q, want %q", got, line)
	}
}

// blocker is what the details of "threads-busy" say of one thread.
type blocker struct {
	Thread   int
	Name     string
	Function string
	Where    string
}

// busyRefusal runs apply or revert, which must give up since this thread is in the
// way, and checks everything that is said of it.
func busyRefusal(t testing.TB, p *testtarget.Process, tid int, function, where string, args ...string) {
	t.Helper()
	pid := strconv.Itoa(p.PID())
	before := testtarget.TextSnapshot(t, p.PID())
	var r reply
	// The time is for all that hotpatch does: on a busy machine that may be more.
	for timeout := 300 * time.Millisecond; ; timeout *= 4 {
		r = reply{}
		r.run = testtarget.RunJSON(t, &r, append([]string{args[0], "--pid", pid, "--consistency", "entry", "--timeout", timeout.String()}, args[1:]...)...)
		late := r.Error != nil && (slices.Contains([]string{"no-agent", "timeout", "not-stopped"}, r.Error.Code) || strings.Contains(r.Error.Why, "tried 1 times"))
		if !late || timeout > testtarget.Timeout {
			break
		}
	}
	if r.run.Exit != 3 || r.Error == nil || r.Error.Code != "threads-busy" || r.Error.Kind != "busy" {
		t.Fatalf("it should exit with 3 and threads-busy\n%v", r.run)
	}
	var list []blocker
	if err := json.Unmarshal(r.Error.Details, &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0] != (blocker{tid, "worker", function, where}) {
		t.Errorf("in the way is %+v, want thread %d (worker), %s, %s", list, tid, function, where)
	}
	for _, want := range []string{strconv.Itoa(tid), "worker", function} {
		if !strings.Contains(r.Error.Why, want) {
			t.Errorf("the message does not name %s: %s", want, r.Error.Why)
		}
	}
	if m := regexp.MustCompile(`tried (\d+) times`).FindStringSubmatch(r.Error.Why); m == nil || m[1] == "1" {
		t.Errorf("it was not tried again: %s", r.Error.Why)
	}
	unchanged(t, ownedBy(before, "hotpatch"), p.PID())
	p.Healthy(t)
}

// ownedBy leaves of a snapshot what belongs to the program and its libraries: the
// mappings of files that are not hotpatch's.
func ownedBy(s testtarget.Snapshot, but string) testtarget.Snapshot {
	rest := make(testtarget.Snapshot)
	for name, sum := range s {
		if strings.Contains(name, "/") && !strings.Contains(name, but) {
			rest[name] = sum
		}
	}
	return rest
}

// The tests of this file let threads be anywhere but where bytes change: that is
// what --consistency entry asks for.

// TestBusySpinning: a thread is, and stays, in the first bytes of a function.
func TestBusySpinning(t *testing.T) {
	t.Parallel()
	tests := []struct {
		n       int
		far     bool
		refused string // code; "": the thread is in the way, but for the last ones
	}{
		{2, false, "branch-into-prologue"}, {3, false, "branch-into-prologue"}, {4, false, "branch-into-prologue"},
		{5, false, ""}, {6, false, ""}, {7, false, "free"}, {13, false, "free"}, {14, false, "free"}, {20, false, "free"},
		{5, true, "branch-into-prologue"}, {9, true, "branch-into-prologue"}, {13, true, "branch-into-prologue"},
		{14, true, "free"}, {20, true, "free"},
	}
	for _, test := range some(tests, 2, 3, 7, 9, 12) {
		t.Run(fmt.Sprintf("back to +%d far=%v", test.n, test.far), func(t *testing.T) {
			t.Parallel()
			var env []string
			if test.far {
				env = append(env, "FAR=1")
			}
			p := testtarget.Start(t, busyTarget(t), testtarget.Env(env...))
			name := fmt.Sprintf("spin%d", test.n)
			patch := calcPatch(t, name, 1000, name, 1)
			asks(t, p, name, 5, 5+test.n)
			before := testtarget.TextSnapshot(t, p.PID())
			tid := holdIn(t, p, name)
			switch test.refused {
			case "":
				busyRefusal(t, p, tid, name, "pc", "apply", patch)
				asks(t, p, "many_boundaries", 5, 6)
			case "free":
				// Now and then, or always, the thread is far enough behind: it goes on
				// in the old code, which is whole but for the jump.
				applyOne(t, p.PID(), "--consistency", "entry", patch)
				asks(t, p, name, 5, 1005)
			default:
				applyRefused(t, p.PID(), 4, test.refused, "--consistency", "entry", patch)
				identical(t, before, p.PID())
			}
			goOn(t, p, name, 5+test.n)
			if test.refused == "" {
				asks(t, p, name, 5, 5+test.n)
				applyOne(t, p.PID(), patch)
				asks(t, p, name, 5, 1005)
			}
			revert(t, p.PID())
			asks(t, p, name, 5, 5+test.n)
			unchanged(t, before, p.PID())
		})
	}
}

// TestBusyReturning: a thread will return into the bytes that are overwritten, or
// just behind them.
func TestBusyReturning(t *testing.T) {
	t.Parallel()
	tests := []struct {
		call, function string
		gives          int
		far, busy      bool
		at             string
	}{
		{"call_return_to_2", "return_to_2", 7, false, true, "stack"},
		{"return_to_5", "return_to_5", 10, false, false, ""},
		{"return_to_9", "return_to_9", 14, false, false, ""},
		{"return_to_5", "return_to_5", 10, true, true, "stack"},
		{"return_to_9", "return_to_9", 14, true, true, "stack"},
		{"return_to_13", "return_to_13", 18, true, true, "stack"},
		{"return_to_14", "return_to_14", 19, true, false, ""},
		{"fault_here", "faults_at_2", 8, false, true, "stack"},
		{"fault_on_other_stack", "faults_at_2", 8, false, true, "stack"},
	}
	for _, test := range some(tests, 0, 1, 4, 7) {
		t.Run(fmt.Sprintf("%s far=%v", test.call, test.far), func(t *testing.T) {
			t.Parallel()
			var env []string
			if test.far {
				env = append(env, "FAR=1")
			}
			p := testtarget.Start(t, busyTarget(t), testtarget.Env(env...))
			patch := cPatch(t, fmt.Sprintf("HOTPATCH_NAME(\"returning\", 1)\nlong %s(long x) { return x + 1000; }\n", test.function))
			asks(t, p, test.call, 5, test.gives)
			before := testtarget.TextSnapshot(t, p.PID())
			tid := holdIn(t, p, test.call)
			if test.busy {
				busyRefusal(t, p, tid, test.function, test.at, "apply", patch)
				// Let go while hotpatch waits, it succeeds.
				done := make(chan testtarget.Result, 1)
				go func() {
					done <- testtarget.Run(t, "apply", "--pid", strconv.Itoa(p.PID()), "--consistency", "entry", "--timeout", "25s", patch)
				}()
				ticksOn(t, p)
				select {
				case r := <-done:
					t.Fatalf("it did not wait\n%v", r)
				case <-time.After(300 * time.Millisecond):
				}
				goOn(t, p, test.call, test.gives)
				if r := <-done; r.Exit != 0 {
					t.Fatalf("it should succeed\n%v", r)
				}
			} else {
				applyOne(t, p.PID(), "--consistency", "entry", patch)
				goOn(t, p, test.call, test.gives)
			}
			asks(t, p, test.call, 5, 1005)
			verify(t, p.PID())
			revert(t, p.PID())
			asks(t, p, test.call, 5, test.gives)
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

// ticksOn ends the test unless the target's threads run: the counter of one of
// them advances.
func ticksOn(t testing.TB, p *testtarget.Process) {
	t.Helper()
	first := p.Ask("ticks", "^ticks ")
	for deadline := time.Now().Add(testtarget.Timeout); p.Ask("ticks", "^ticks ") == first; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the target's threads do not run: %q", first)
		}
	}
}

// TestRevertUnderThread: a patch is taken out while a thread is in its code, which
// stays mapped: the thread ends there what it began.
func TestRevertUnderThread(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, busyTarget(t))
	pid := p.PID()
	patch := cPatch(t, `HOTPATCH_NAME("under", 1)
HOTPATCH_REF_VAR(volatile int, is_held, "held")
long many_boundaries(long x) {
	while (*is_held)
		;
	return x + 1000;
}
`)
	before := testtarget.TextSnapshot(t, pid)
	applyOne(t, pid, patch)
	asks(t, p, "many_boundaries", 5, 1005)
	holdIn(t, p, "many_boundaries")
	must(t, "revert", "--pid", strconv.Itoa(pid), "--consistency", "entry", "under")
	asks(t, p, "many_boundaries", 5, 6)
	goOn(t, p, "many_boundaries", 1005)
	asks(t, p, "many_boundaries", 5, 6)
	unchanged(t, before, pid)
	p.Healthy(t)
}

// TestBusyWaiting: while hotpatch tries again and again, everything runs, and it
// gives up when its time is over, not before.
func TestBusyWaiting(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, busyTarget(t))
	pid := strconv.Itoa(p.PID())
	patch := calcPatch(t, "spin5", 1000, "waiting", 1)
	holdIn(t, p, "spin5")
	// try gives how long it took until it gave up; 0 if it did before it could try,
	// since the machine is busy.
	try := func(timeout time.Duration) time.Duration {
		began := time.Now()
		r := testtarget.Run(t, "apply", "--pid", pid, "--consistency", "entry", "--timeout", timeout.String(), patch)
		took := time.Since(began)
		switch {
		case r.Exit == 3 && (strings.Contains(r.Stderr, "[threads-busy]") || strings.Contains(r.Stderr, "[not-stopped]")): // as the last try ended
			return took
		case r.Exit == 3 && (strings.Contains(r.Stderr, "[no-agent]") || strings.Contains(r.Stderr, "[timeout]")):
			return 0
		}
		t.Errorf("it should exit with 3\n%v", r)
		return took
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for timeout := 400 * time.Millisecond; ; timeout *= 4 {
			a, b := try(timeout), try(3*timeout)
			if a == 0 || b == 0 {
				if timeout < testtarget.Timeout {
					continue
				}
				t.Error("it never comes to try")
			}
			if a < timeout || b < 3*timeout {
				t.Errorf("it gave up after %v and %v, before %v and %v were over", a, b, timeout, 3*timeout)
			}
			return
		}
	}()
	rounds := 0
	for running := true; running; rounds++ {
		ticksOn(t, p)
		asks(t, p, "many_boundaries", 5, 6)
		select {
		case <-done:
			running = false
		default:
		}
	}
	if rounds < 5 {
		t.Errorf("the target answered only %d times", rounds)
	}
	goOn(t, p, "spin5", 10)
	p.Healthy(t)
}

// TestHammer: 16 threads call a function all the time, which has as many places to
// stop in its first bytes as there can be, while it is patched and reverted. Every
// answer is that of the old function or of the new one.
func TestHammer(t *testing.T) {
	lengthy(t)
	t.Parallel()
	const rounds = 30 // for each of both
	for _, far := range []bool{false, true} {
		t.Run(fmt.Sprintf("far=%v", far), func(t *testing.T) {
			t.Parallel()
			var env []string
			if far {
				env = append(env, "FAR=1")
			}
			p := testtarget.Start(t, busyTarget(t), testtarget.Env(env...))
			pid := p.PID()
			one, two := calcPatch(t, "many_boundaries", 1000, "hammer", 1), calcPatch(t, "many_boundaries", 2000, "hammer", 2)
			before := testtarget.TextSnapshot(t, pid)
			asks(t, p, "hammer", 16, 16)
			for i := range rounds {
				// A thread may be anywhere but in the bytes that change.
				apply(t, pid, "--consistency", "entry", one)
				if i%4 == 1 {
					apply(t, pid, "--consistency", "entry", two)
				}
				revert(t, pid, "--consistency", "entry", "--all")
			}
			for which, name := range []string{"old", "patched once", "patched twice", "wrong"} {
				answer := p.Ask(fmt.Sprintf("hammered %d", which), `^hammered\(`)
				_, n, _ := strings.Cut(answer, " = ")
				if (n == "0") != (name == "wrong") {
					t.Errorf("%s answers were %s", n, name)
				}
			}
			unchanged(t, before, pid)
			p.Healthy(t)
		})
	}
}
