package e2e

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// oddTarget starts the program of threads on unusual stacks.
func oddTarget(t testing.TB) *testtarget.Process {
	t.Helper()
	names := []string{"in_register", "in_register_with_cfi", "skewed", "locked", "inside", "on_static_stack", "on_heap_stack",
		"on_growing_stack", "signalled", "on_guarded_stack", "in_coroutine", "resumes", "bare_thread", "shares_memory", "vforks", "keeps_secret", "arrived"}
	return testtarget.Start(t, testtarget.Build(t, testtarget.Spec{
		Name: "odd", Flags: []string{"-O2"}, Sources: []string{"consistent_odd.c", "consistent_odd_asm.S"},
		Files: map[string]string{"main.c": callerSource(names)},
	}))
}

// TestOddStacks: wherever a thread has its stack, and wherever the address is to
// which it returns: it is seen to be in the function.
func TestOddStacks(t *testing.T) {
	t.Parallel()
	tests := []struct {
		call, function, where string
		gives                 int
		walked                bool // its call chain is known to the end
	}{
		{"in_register", "in_register", "register", 6, false},
		{"in_register_with_cfi", "in_register_with_cfi", "stack", 7, true},
		{"skewed", "skewed", "stack", 8, false},
		{"locked", "locked", "stack", 9, true},
		{"on_static_stack", "inside", "stack", 10, true},
		{"on_heap_stack", "inside", "stack", 10, true},
		{"on_growing_stack", "inside", "stack", 10, true},
		{"on_guarded_stack", "signalled", "stack", 10, true},
		{"in_coroutine", "signalled", "stack", 10, false},
		{"resumes", "resumes", "stack", 11, false},
		{"bare_thread", "inside", "stack", 10, false},
	}
	for _, test := range some(tests, 0, 3, 7) {
		t.Run(test.call, func(t *testing.T) {
			t.Parallel()
			p := oddTarget(t)
			patch := calcPatch(t, test.function, 1000, "odd", 1)
			stayIn(t, p, test.call)
			list := inTheWay(t, p, "apply", stack, patch)
			if len(list) != 1 || list[0].Name != "worker" || list[0].Function != test.function || list[0].Where != test.where {
				t.Fatalf("in the way is %+v, want a worker, %s, %s", list, test.function, test.where)
			}
			if o := list[0]; test.walked && (!o.has(test.function) || o.Walk != "") {
				t.Errorf("the call chain is %q (%s)", o.chain(), o.Walk)
			}
			ticksOn(t, p)
			goOn(t, p, test.call, test.gives)
			applyOne(t, p.PID(), with(stack, patch)...)
			asks(t, p, test.function, 5, 1005)
			revert(t, p.PID(), with(stack, "--all")...)
		})
	}
}

// TestUnreadablePages: guard pages within a mapping are nothing. A page that nobody
// else can read holds no stack, and may hold a pointer.
func TestUnreadablePages(t *testing.T) {
	t.Parallel()
	p := oddTarget(t)
	patch := calcPatch(t, "inside", 1000, "odd", 1)
	available := func(function string, want string) {
		t.Helper()
		if got := p.Ask(function+" 5", "^"+function+`\(`); got != function+"(5) = "+want {
			testtarget.Unavailable(t, "the kernel is too old: %s", got)
		}
	}
	available("on_guarded_stack", "10") // which stays mapped
	applyOne(t, p.PID(), with(scanMemory, patch)...)
	asks(t, p, "inside", 5, 1005)
	unloaded(t, p, unload(t, p.PID(), "--all"), "odd@1")
	available("keeps_secret", "5")
	applyOne(t, p.PID(), with(scanMemory, patch)...)
	asks(t, p, "inside", 5, 1005)
	kept(t, p, unload(t, p.PID(), "--all"), "odd@1", `^the page at 0x[0-9a-f]+ cannot be read`)
	asks(t, p, "inside", 5, 10)
}

// TestSharedMemory: another process runs in the same memory. It would not be stopped,
// so nothing is changed while it is there.
func TestSharedMemory(t *testing.T) {
	t.Parallel()
	for call, gives := range map[string]int{"shares_memory": 10, "vforks": 12} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			p := oddTarget(t)
			before := testtarget.TextSnapshot(t, p.PID())
			patch := calcPatch(t, "inside", 1000, "odd", 1)
			stayIn(t, p, call)
			for _, consistency := range []string{"stack", "entry"} {
				r := refusedLate(t, "memory-shared", "apply", "--pid", strconv.Itoa(p.PID()), "--consistency", consistency, patch)
				if !strings.Contains(r.Stderr, "runs in the same memory") {
					t.Error(r)
				}
			}
			unchanged(t, ownedBy(before, "hotpatch"), p.PID())
			goOn(t, p, call, gives)
			applyOne(t, p.PID(), with(stack, patch)...)
			asks(t, p, "inside", 5, 1005)
			stayIn(t, p, "vforks")
			refusedLate(t, "memory-shared", "revert", "--pid", strconv.Itoa(p.PID()), "--all")
			asks(t, p, "inside", 5, 1005)
			goOn(t, p, "vforks", 12)
			revert(t, p.PID(), "--all")
			asks(t, p, "inside", 5, 10)
		})
	}
}

// refusedLate is refused, with exit status 3, for what is tried until the time is
// over. On a busy machine the time may be over before.
func refusedLate(t *testing.T, code string, args ...string) (r testtarget.Result) {
	t.Helper()
	for timeout := 300 * time.Millisecond; ; timeout *= 4 {
		r = testtarget.Run(t, with(args, "--timeout", timeout.String())...)
		if r.Exit == 3 && strings.Contains(r.Stderr, "["+code+"]") {
			return r
		}
		if r.Exit != 3 || timeout > testtarget.Timeout {
			t.Fatalf("it should exit with 3 and say [%s]\n%v", code, r)
		}
	}
}
