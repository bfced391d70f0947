package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"hotpatch/internal/testtarget"
)

// hooksPatch builds calc_hooks.c.
func hooksPatch(t *testing.T, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Sources: []string{"calc_hooks.c"}, Shared: true, Flags: append([]string{"-O2"}, flags...)})
}

// patchOf builds a patch library from one source. A name that ends in .cc is C++.
func patchOf(t *testing.T, name, source string, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Files: map[string]string{name: source}, Shared: true, Flags: append([]string{"-O2"}, flags...)})
}

// hookLines gives what the hooks have printed in the target so far. An answer
// that is asked for before makes sure that all of it has been read.
func hookLines(t *testing.T, p *testtarget.Process) []string {
	t.Helper()
	p.Ask("show", "^hidden ")
	return slices.DeleteFunc(p.Lines(), func(line string) bool { return !strings.HasPrefix(line, "hook ") })
}

func wantHooks(t *testing.T, p *testtarget.Process, want ...string) {
	t.Helper()
	if got := hookLines(t, p); !slices.Equal(got, want) {
		t.Fatalf("the hooks have printed\n%q\nwant\n%q", got, want)
	}
}

// What the hooks of calc_hooks.c print: old or new shows whether add_one was
// already, or still, replaced.
const (
	beforeApply  = "hook before-apply add_one 2"
	afterApply   = "hook after-apply add_one 1002"
	beforeRevert = "hook before-revert add_one 1002"
	afterRevert  = "hook after-revert add_one 2"
)

// TestHooks: each hook runs once, in order, before or after the change.
func TestHooks(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	original := testtarget.TextSnapshot(t, p.PID())
	patch := hooksPatch(t)
	pid := strconv.Itoa(p.PID())

	must(t, "apply", "--dry-run", "--pid", pid, patch)
	wantHooks(t, p)
	apply(t, p.PID(), patch)
	wantHooks(t, p, beforeApply, afterApply)
	answers(t, p, "add_one", 1, 1002)

	apply(t, p.PID(), patch) // already applied
	must(t, "revert", "--dry-run", "--pid", pid, "hooks")
	wantHooks(t, p, beforeApply, afterApply)

	revert(t, p.PID(), "hooks")
	wantHooks(t, p, beforeApply, afterApply, beforeRevert, afterRevert)
	answers(t, p, "add_one", 1, 2)
	revert(t, p.PID()) // nothing is applied
	wantHooks(t, p, beforeApply, afterApply, beforeRevert, afterRevert)

	// Once more, with the library that is still mapped.
	apply(t, p.PID(), patch)
	revert(t, p.PID())
	wantHooks(t, p, beforeApply, afterApply, beforeRevert, afterRevert, beforeApply, afterApply, beforeRevert, afterRevert)
	unchanged(t, original, p.PID())
	p.Healthy(t)
}

// TestHookOrder: hooks of one kind run in the order of the source.
func TestHookOrder(t *testing.T) {
	t.Parallel()
	var source strings.Builder
	source.WriteString("#include \"hotpatch.h\"\n#include <stdio.h>\nlong add_one(long x);\nlong add_one(long x) { return x + 1000; }\n")
	var want []string
	for _, kind := range []string{"BEFORE_APPLY", "AFTER_APPLY", "BEFORE_REVERT", "AFTER_REVERT"} {
		for _, n := range []string{"z", "a", "m"} {
			fmt.Fprintf(&source, "static int %s_%s(void) { puts(\"hook %s %s\"); return fflush(stdout); }\nHOTPATCH_%s(%s_%s)\n", n, kind, kind, n, kind, n, kind)
			want = append(want, "hook "+kind+" "+n)
		}
	}
	p := calculator(t)
	apply(t, p.PID(), patchOf(t, "order.c", source.String()))
	revert(t, p.PID())
	wantHooks(t, p, want...)
}

// TestHookCancelsApply: nothing has changed after a hook has said no.
func TestHookCancelsApply(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	pid := strconv.Itoa(p.PID())
	original := testtarget.TextSnapshot(t, p.PID())
	e := applyRefused(t, p.PID(), 1, "hook", hooksPatch(t, "-DREFUSE_APPLY"))
	if !strings.Contains(e.Message, "before-apply") || !strings.Contains(e.Message, "returned 1") {
		t.Errorf("the message is %q", e.Message)
	}
	wantHooks(t, p, beforeApply, beforeApply) // once in text and once with --json
	onlyRegion(t, original, p.PID())
	answers(t, p, "add_one", 1, 2)
	checkList(t, p.PID(), nil)
	p.Healthy(t)

	// The patch that does not cancel has the same name and version.
	must(t, "apply", "--pid", pid, hooksPatch(t))
	answers(t, p, "add_one", 1, 1002)
}

// TestHookCancelsRevert: the patch stays in force as it is.
func TestHookCancelsRevert(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	pid := strconv.Itoa(p.PID())
	apply(t, p.PID(), hooksPatch(t, "-DREFUSE_REVERT"))
	other := calcPatch(t, "weak_fn", 500, "other", 1)
	apply(t, p.PID(), other)
	before := testtarget.TextSnapshot(t, p.PID())
	patched := map[string]string{"hooks@1": "active", "other@1": "active"}
	for _, names := range [][]string{{"hooks"}, {"--all"}, {"other", "hooks"}} {
		r := refused(t, 1, "hook", append([]string{"revert", "--pid", pid}, names...)...)
		if !strings.Contains(r.Stderr, "before-revert") || !strings.Contains(r.Stderr, "returned 1") {
			t.Errorf("it should name the hook and what it returned\n%v", r)
		}
		checkList(t, p.PID(), patched)
		verify(t, p.PID())
		answers(t, p, "add_one", 1, 1002)
		answers(t, p, "weak_fn", 1, 501)
	}
	wantHooks(t, p, beforeApply, afterApply, beforeRevert, beforeRevert, beforeRevert)
	for _, line := range testtarget.Diff(before, testtarget.TextSnapshot(t, p.PID())) {
		if strings.Contains(line, "/") {
			t.Errorf("a module has changed: %s", line)
		}
	}
	// The hook is asked for its own patch only.
	revert(t, p.PID(), "other")
	answers(t, p, "weak_fn", 1, 8)
	answers(t, p, "add_one", 1, 1002)
	p.Healthy(t)
}

// TestHookThrows: an exception ends in hotpatch, which says of what type it was.
// In a hook that comes after, the change stands.
func TestHookThrows(t *testing.T) {
	t.Parallel()
	const source = `#include "hotpatch.h"
#include <stdexcept>
#include <string>
extern "C" long add_one(long x) { return x + 1000; }
namespace app { struct Trouble : std::runtime_error { using std::runtime_error::runtime_error; }; }
static int hook() { throw app::Trouble(std::string(1000, 'x')); }
`
	tests := []struct {
		kind         string
		applied      bool // it is applied in spite of the hook
		reverts      bool // and can be reverted
		applyExit    int
		applyMention bool
	}{
		{kind: "BEFORE_APPLY", applyExit: 1, applyMention: true},
		{kind: "AFTER_APPLY", applied: true, reverts: true, applyMention: true},
		{kind: "BEFORE_REVERT", applied: true},
		{kind: "AFTER_REVERT", applied: true, reverts: true},
	}
	for _, tt := range some(tests, 0, 1) {
		t.Run(tt.kind, func(t *testing.T) {
			t.Parallel()
			patch := patchOf(t, "throw.cc", source+"HOTPATCH_"+tt.kind+"(hook)\n")
			p := calculator(t)
			pid := strconv.Itoa(p.PID())
			r := testtarget.Run(t, "apply", "--pid", pid, patch)
			if r.Exit != tt.applyExit || strings.Contains(r.Stdout+r.Stderr, "app::Trouble") != tt.applyMention {
				t.Fatalf("apply should exit with %d and mention app::Trouble: %v\n%v", tt.applyExit, tt.applyMention, r)
			}
			p.Healthy(t)
			if !tt.applied {
				answers(t, p, "add_one", 1, 2)
				checkList(t, p.PID(), nil)
				return
			}
			answers(t, p, "add_one", 1, 1001)
			checkList(t, p.PID(), map[string]string{"throw@1": "active"})
			r = testtarget.Run(t, "revert", "--pid", pid, "--all")
			wantExit, mention := 0, tt.kind == "AFTER_REVERT"
			if !tt.reverts {
				wantExit, mention = 1, true
			}
			if r.Exit != wantExit || strings.Contains(r.Stdout+r.Stderr, "app::Trouble") != mention {
				t.Fatalf("revert should exit with %d and mention app::Trouble: %v\n%v", wantExit, mention, r)
			}
			p.Healthy(t)
			if tt.reverts {
				answers(t, p, "add_one", 1, 2)
			} else {
				answers(t, p, "add_one", 1, 1001)
			}
			verify(t, p.PID())
		})
	}
}

// TestHeaderSaysWhatItIs: name, version, description and CVEs reach inspect and,
// through the target's memory, list.
func TestHeaderSaysWhatItIs(t *testing.T) {
	t.Parallel()
	patch := patchOf(t, "some-file-name.c", `#include "hotpatch.h"
HOTPATCH_NAME("login-fix", 7)
HOTPATCH_DESCRIPTION("check the length before the copy")
HOTPATCH_CVE("CVE-2026-0001")
HOTPATCH_CVE("CVE-2026-0002")
long add_one(long x);
long add_one(long x) { return x + 1000; }
`)
	type described struct {
		Name, Description string
		Version           int
		CVEs              []string
	}
	check := func(d described) {
		t.Helper()
		if d.Name != "login-fix" || d.Version != 7 || d.Description != "check the length before the copy" ||
			!slices.Equal(d.CVEs, []string{"CVE-2026-0001", "CVE-2026-0002"}) {
			t.Errorf("got %+v", d)
		}
	}
	var inspected struct{ Result described }
	if r := testtarget.RunJSON(t, &inspected, "inspect", patch); r.Exit != 0 {
		t.Fatalf("inspect\n%v", r)
	}
	check(inspected.Result)

	p := calculator(t)
	apply(t, p.PID(), patch)
	var listed struct {
		Result struct {
			Processes []struct{ Patches []described }
		}
	}
	r := testtarget.RunJSON(t, &listed, "list", "--pid", strconv.Itoa(p.PID()))
	if len(listed.Result.Processes) != 1 || len(listed.Result.Processes[0].Patches) != 1 {
		t.Fatalf("list should show one patch\n%v", r)
	}
	check(listed.Result.Processes[0].Patches[0])
	text := must(t, "list", "--pid", strconv.Itoa(p.PID())).Stdout
	for _, part := range []string{"login-fix", "7", "CVE-2026-0001", "CVE-2026-0002", "add_one"} {
		if !strings.Contains(text, part) {
			t.Errorf("list should say %q:\n%s", part, text)
		}
	}
	// A plain library is named by its file.
	q := calculator(t)
	apply(t, q.PID(), calcPatch(t, "add_one", 1000, "", 0))
	checkList(t, q.PID(), map[string]string{"calc_patch@1": "active"})
}

// TestReferencesBeforeConstructors: pointers to the target's static variables and
// functions are filled in when the first code of the patch runs.
func TestReferencesBeforeConstructors(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, source string }{
		{"c.c", `#include "hotpatch.h"
HOTPATCH_REF_VAR(long, hidden, "calc.c:hidden_counter")
HOTPATCH_REF_FUNC(long, twice, (long x), "times_two")
long add_one(long x);
long add_one(long x) { return x + *hidden; }
__attribute__((constructor)) static void begin(void) { *hidden = twice(2000); }
`},
		{"cxx.cc", `#include "hotpatch.h"
HOTPATCH_REF_VAR(long, hidden, "calc.c:hidden_counter")
HOTPATCH_REF_FUNC(long, twice, (long x), "times_two")
extern "C" long add_one(long x) { return x + *hidden; }
struct Begin { Begin() { *hidden = twice(2000); } };
static Begin begin;
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := calculator(t)
			if got := p.Ask("show", "^hidden "); !strings.HasPrefix(got, "hidden 1000 ") {
				t.Fatalf("the target says %q", got)
			}
			apply(t, p.PID(), patchOf(t, tt.name, tt.source))
			if got := p.Ask("show", "^hidden "); !strings.HasPrefix(got, "hidden 4000 ") {
				t.Errorf("the target says %q after the constructor", got)
			}
			answers(t, p, "add_one", 1, 4001)
			answers(t, p, "times_two", 4, 8)
			revert(t, p.PID())
			// The variable is the target's own, and keeps its value.
			if got := p.Ask("show", "^hidden "); !strings.HasPrefix(got, "hidden 4000 ") {
				t.Errorf("the target says %q after the revert", got)
			}
			answers(t, p, "add_one", 1, 2)
			p.Healthy(t)
		})
	}
}

// TestReferencesKeepState: calc_p1.c counts on in the target's own variable, and
// calls its static function.
func TestReferencesKeepState(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	answers(t, p, "count", 0, 1001+2001+3001)
	apply(t, p.PID(), testtarget.Build(t, testtarget.Spec{Sources: []string{"calc_p1.c"}, Shared: true, Flags: []string{"-O2"}}))
	answers(t, p, "count", 0, 1011)
	answers(t, p, "count", 5, 1026)
	answers(t, p, "add_one", 10, 31)
	answers(t, p, "a_same", 1, 5101) // by HOTPATCH_REPLACE of calc_a.c's
	answers(t, p, "b_same", 1, 201)  // calc_b.c's has the same name
	revert(t, p.PID())
	answers(t, p, "count", 0, 1022+2002+3002)
	answers(t, p, "a_same", 1, 101)
	answers(t, p, "add_one", 10, 11)
}

// TestKeep: a global helper that happens to have the name of a function of the
// target does not replace it.
func TestKeep(t *testing.T) {
	t.Parallel()
	const source = `#include "hotpatch.h"
HOTPATCH_NAME("keep", 1)
long weak_fn(long x);
long weak_fn(long x) { return x + 500; }
long add_one(long x);
long add_one(long x) { return weak_fn(x) + 1000; }
`
	tests := []struct {
		name, more string
		weak       int
	}{
		{"kept", "HOTPATCH_KEEP(weak_fn)\n", 8},
		{"not kept", "", 501},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := calculator(t)
			apply(t, p.PID(), patchOf(t, "keep.c", source+tt.more))
			answers(t, p, "add_one", 1, 1501)
			answers(t, p, "weak_fn", 1, tt.weak)
		})
	}
}

// TestExplicitPairs: what HOTPATCH_REPLACE and HOTPATCH_REPLACE_AT name, and
// nothing else, is replaced; the new function's own name does not count.
func TestExplicitPairs(t *testing.T) {
	t.Parallel()
	exe := testtarget.Build(t, testtarget.Spec{Sources: calcSources, Flags: []string{"-O2"}})
	id := buildID(t, exe)
	at := func(name string) string { return fmt.Sprintf("%q, %#x", id, symbolAddr(t, exe, name)) }
	const functions = `#include "hotpatch.h"
static long new_static(long x) { return x + 7000; }
long weak_fn(long x);
long weak_fn(long x) { return x + 8000; }
`
	tests := []struct {
		name, pairs string
		changed     map[string]int // function of x to its result for 1
	}{
		{"names", `HOTPATCH_REPLACE(new_static, "times_two")
			HOTPATCH_REPLACE(weak_fn, "add_one")`, map[string]int{"times_two": 7001, "add_one": 8001}},
		{"module and file", `HOTPATCH_REPLACE(new_static, "calc!calc_b.c:same_name")
			HOTPATCH_REPLACE(weak_fn, "calc!add_one")`, map[string]int{"b_same": 7001, "add_one": 8001}},
		{"one function for two", `HOTPATCH_REPLACE(new_static, "times_two")
			HOTPATCH_REPLACE(new_static, "add_one")
			HOTPATCH_KEEP(weak_fn)`, map[string]int{"times_two": 7001, "add_one": 7001}},
		{"addresses", "HOTPATCH_REPLACE_AT(new_static, " + at("times_two") + ")\n" +
			"HOTPATCH_REPLACE_AT(weak_fn, " + at("recursive") + ")\n", map[string]int{"times_two": 7001, "recursive": 8001}},
		{"right build", `HOTPATCH_REPLACE(new_static, "times_two")
			HOTPATCH_KEEP(weak_fn)
			HOTPATCH_BASE("` + id + `")
			HOTPATCH_BASE("0123456789abcdef")`, map[string]int{"times_two": 7001}},
		{"right build of the module", `HOTPATCH_REPLACE(new_static, "times_two")
			HOTPATCH_KEEP(weak_fn)
			HOTPATCH_BASE_MODULE("calc", "` + id + `")`, map[string]int{"times_two": 7001}},
	}
	originals := map[string]int{"times_two": 2, "add_one": 2, "weak_fn": 8, "a_same": 101, "b_same": 201, "recursive": 1}
	for _, tt := range some(tests, 0, 1, 3) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, exe)
			before := testtarget.TextSnapshot(t, p.PID())
			apply(t, p.PID(), patchOf(t, "pairs.c", functions+tt.pairs+"\n"))
			for name, want := range originals {
				if changed, ok := tt.changed[name]; ok {
					want = changed
				}
				answers(t, p, name, 1, want)
			}
			verify(t, p.PID())
			revert(t, p.PID())
			for name, want := range originals {
				answers(t, p, name, 1, want)
			}
			unchanged(t, before, p.PID())
		})
	}
}

// TestExceptionsKeepTheirFastPath: a patch without constructors of its own does not make
// libgcc register a frame. Before version 13 that would make every exception of the
// process take a lock from then on.
func TestExceptionsKeepTheirFastPath(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: []string{"throws.cc"}, Flags: []string{"-O2"}}))
	p.Ask("throw 1", "^caught 1 ")
	counter := patchOf(t, "counter.c", `#include "hotpatch.h"
HOTPATCH_NAME("counter", 1)
unsigned long calls;
static void counted(void *frame) { (void)frame; calls++; }
static void ignored(void *frame) { (void)frame; }
HOTPATCH_REPLACE(counted, "libgcc_s.so.1!__register_frame")
HOTPATCH_REPLACE(ignored, "libgcc_s.so.1!__deregister_frame")
`)
	apply(t, p.PID(), counter)
	calls := patchVariable(t, p.PID(), counter, "counter", "calls")
	apply(t, p.PID(), testtarget.Build(t, testtarget.Spec{Sources: []string{"throws_p1.cc"}, Shared: true, Flags: []string{"-O2"}}))
	p.Ask("throw 1", "^caught 5001 ")
	revert(t, p.PID(), "throws")
	if n := calls(); n != 0 {
		t.Errorf("__register_frame was called %d times", n)
	}
	apply(t, p.PID(), patchOf(t, "constructed.cc", `#include "hotpatch.h"
#include <stdlib.h>
HOTPATCH_NAME("constructed", 1)
long thrower(long x);
static long begun = strtol("7", nullptr, 10);
long thrower(long x) { return x + begun; }
`))
	p.Ask("throw 1", "^returned 9$")
	if n := calls(); n != 1 { // else the counter counts nothing
		t.Errorf("__register_frame was called %d times for a constructor that might throw", n)
	}
	revert(t, p.PID())
	p.Healthy(t)
}

// TestHookPriority: what hotpatch runs in the process goes before ordinary threads at most
// where it was starved, and what is begun there does not, nor does any thread of the process.
func TestHookPriority(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	apply(t, p.PID(), patchOf(t, "priority.c", `#define _GNU_SOURCE
#include "hotpatch.h"
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>
long add_one(long x);
long add_one(long x) { return x + 1000; }
static void *begun(void *nice) { *(int *)nice = getpriority(PRIO_PROCESS, gettid()); return NULL; }
static int look(void) {
	pthread_t thread;
	int inner = 77;
	if (pthread_create(&thread, NULL, begun, &inner) != 0 || pthread_join(thread, NULL) != 0)
		return 1;
	printf("hook at %d, its thread at %d\n", getpriority(PRIO_PROCESS, gettid()), inner);
	return fflush(stdout);
}
HOTPATCH_BEFORE_APPLY(look)
`))
	got := hookLines(t, p)
	if len(got) != 1 || got[0] != "hook at 0, its thread at 0" && got[0] != "hook at -20, its thread at 0" {
		t.Errorf("the hook says %q", got)
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		// The system call gives 20 less the nice value.
		if prio, err := syscall.Getpriority(syscall.PRIO_PROCESS, tid); err != nil || prio != 20 {
			t.Errorf("thread %d has the priority %d, %v", tid, prio, err)
		}
	}
	revert(t, p.PID())
	p.Healthy(t)
}
