package e2e

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// revertResult is the part of a revert's result that the tests look at.
type revertResult struct {
	State    string
	Reverted []struct{ Name string }
	Unloaded []string
	Kept     []struct{ Patch, Why string }
}

// unload runs revert --unload, which must succeed as far as the reverting goes.
// Its search of memory may take long: the machine may be slow.
func unload(t testing.TB, pid int, args ...string) revertResult {
	t.Helper()
	var r reply
	r.run = testtarget.RunJSON(t, &r, with([]string{"revert", "--pid", strconv.Itoa(pid), "--unload", "--max-pause", "20s"}, args...)...)
	var result revertResult
	if err := json.Unmarshal(r.Result, &result); err != nil || r.run.Exit != 0 {
		t.Fatalf("%v\n%v", err, r.run)
	}
	return result
}

// unloaded ends the test unless unload has taken a patch's library out, and
// nothing of it is left.
func unloaded(t testing.TB, p *testtarget.Process, r revertResult, label string) {
	t.Helper()
	if !slices.Equal(r.Unloaded, []string{label}) || len(r.Kept) != 0 {
		t.Fatalf("it should be unloaded: %+v", r)
	}
	if left := mapsOf(t, p.PID(), "hotpatch:"); len(left) != 0 {
		t.Errorf("still mapped:\n%s", strings.Join(left, "\n"))
	}
	if list := mappedPatches(t, p.PID()); len(list) != 0 {
		t.Errorf("list has %+v", list)
	}
	p.Healthy(t)
}

// mappedPatch is what list says of a patch.
type mappedPatch struct{ Name, State, Kept string }

// mappedPatches gives the patches of a process whose libraries are mapped.
func mappedPatches(t testing.TB, pid int) []mappedPatch {
	t.Helper()
	var list struct {
		Result struct {
			Processes []struct{ Patches []mappedPatch }
		}
	}
	if r := testtarget.RunJSON(t, &list, "list", "--pid", strconv.Itoa(pid)); r.Exit != 0 || len(list.Result.Processes) != 1 {
		t.Fatal(r)
	}
	return list.Result.Processes[0].Patches
}

// kept ends the test unless unload has left a patch's library where it was, for a
// reason that list gives too.
func kept(t testing.TB, p *testtarget.Process, r revertResult, label, why string) {
	t.Helper()
	if len(r.Unloaded) != 0 || len(r.Kept) != 1 || r.Kept[0].Patch != label || !regexp.MustCompile(why).MatchString(r.Kept[0].Why) {
		t.Fatalf("it should be kept, since %q: %+v", why, r)
	}
	if len(mapsOf(t, p.PID(), "hotpatch:")) == 0 {
		t.Error("it is not mapped any more")
	}
	name, _, _ := strings.Cut(label, "@")
	if list := mappedPatches(t, p.PID()); !slices.Equal(list, []mappedPatch{{name, "inert", r.Kept[0].Why}}) {
		t.Errorf("list has %+v", list)
	}
	if text := must(t, "list", "--pid", strconv.Itoa(p.PID())).Stdout; !strings.Contains(text, r.Kept[0].Why) {
		t.Errorf("list does not say %q:\n%s", r.Kept[0].Why, text)
	}
	p.Healthy(t)
}

// keepsPatch is a patch of recurses, which gives x + 1000 and calls leave(x); what
// stands before it is given.
func keepsPatch(t *testing.T, name, source string, flags ...string) string {
	t.Helper()
	return patchOf(t, name, `#include "hotpatch.h"
HOTPATCH_NAME("keeps", 1)
HOTPATCH_REF_VAR(void *, kept, "kept")
`+source+`
#ifdef __cplusplus
extern "C"
#endif
long recurses(long x);
long recurses(long x) {
	leave(x);
	return x + 1000;
}
`, flags...)
}

// TestUnload: the library of a patch is taken out with it, unless something in the
// process refers to it or the loader would keep it. When the reason has gone, it is
// taken out after all.
func TestUnload(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, source string
		flags        []string
		keeps        string // why it is kept; "" if it is not
		forget       bool   // the reason can be taken away: by a call of forgets
	}{
		{name: "plain.c", source: `static void leave(long x) { (void)x; }`},
		{name: "function_pointer_in_a_variable.c", source: `
static long later(long x) { return x; }
static void leave(long x) { *kept = (void *)later; (void)x; }`,
			keeps: `^the word at 0x[0-9a-f]+ \(.*\) points into it$`, forget: true},
		{name: "function_pointer_on_the_heap.c", source: `#include <stdlib.h>
static long later(long x) { return x; }
static void leave(long x) {
	void **room = malloc(1000);
	room[100] = (void *)later;
	*kept = room;
	(void)x;
}`,
			keeps: `^the word at 0x[0-9a-f]+ \(\[heap\]\) points into it$`, forget: true},
		{name: "string.c", source: `
static void leave(long x) { *kept = (void *)"the library's own text"; (void)x; }`,
			keeps: `^the word at 0x[0-9a-f]+ \(.*\) points into it$`, forget: true},
		{name: "object_with_a_vtable.cc", source: `#include <new>
struct base { virtual ~base() {} virtual long number() { return 1; } };
namespace { struct derived : base { long number() override { return 2; } }; }
static void leave(long) {
	void **room = (void **)new char[1000];
	*kept = new (room) derived;
}`,
			keeps: `^the word at 0x[0-9a-f]+ \(\[heap\]\) points into it$`, forget: true},
		{name: "template_static.cc", source: `
template <typename T> struct holder { static T value; };
template <typename T> T holder<T>::value = 1;
static void leave(long x) { holder<long>::value += x; }`,
			keeps: `^it defines the unique symbol holder<long>::value, which pins it$`},
		{name: "thread_local_destructor.cc", source: `
struct counted { long n = 0; ~counted() { n = -1; } };
static thread_local counted each;
static void leave(long x) { each.n += x; }`,
			keeps: `^it has thread-local variables with destructors, which pin it$`},
		{name: "nodelete.c", source: `static void leave(long x) { (void)x; }`, flags: []string{"-Wl,-z,nodelete"},
			keeps: `^it was linked with -z nodelete$`},
	}
	for _, test := range some(tests, 0, 2, 4, 5) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := consistencyTarget(t)
			before := testtarget.TextSnapshot(t, p.PID())
			patch := keepsPatch(t, test.name, test.source, test.flags...)
			applyOne(t, p.PID(), with(stack, patch)...)
			asks(t, p, "recurses", 5, 1005)
			r := unload(t, p.PID(), "--all")
			if r.State != "reverted" {
				t.Errorf("the state is %s", r.State)
			}
			asks(t, p, "recurses", 5, 5)
			if test.keeps == "" {
				unloaded(t, p, r, "keeps@1")
			} else {
				kept(t, p, r, "keeps@1", test.keeps)
				kept(t, p, unload(t, p.PID(), "keeps"), "keeps@1", test.keeps) // nothing has changed
				asks(t, p, "forgets", 0, 0)
				again := unload(t, p.PID(), "keeps")
				if test.forget {
					unloaded(t, p, again, "keeps@1")
				} else {
					kept(t, p, again, "keeps@1", test.keeps)
				}
			}
			asks(t, p, "recurses", 5, 5)
			unchanged(t, before, p.PID())
			// It can come back, from wherever it is now.
			applyOne(t, p.PID(), with(stack, patch)...)
			asks(t, p, "recurses", 5, 1005)
		})
	}
}

// TestUnloadUnderThread: a thread is in the patch's code. What was asked for is
// the weaker condition, so the patch is out at once, but its library stays until
// the thread has left.
func TestUnloadUnderThread(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, source, why string }{
		{"on_the_stack", neverReturnsSource, `^the word at 0x[0-9a-f]+ \(.*\) points into it$`},
		{"in_a_register", `#include "hotpatch.h"
HOTPATCH_NAME("stays", 1)
HOTPATCH_REF_VAR(volatile int, held, "held")
HOTPATCH_REF_VAR(long, arrivals, "arrivals")
long keeps_calling(long x);
long keeps_calling(long x) {
	++*arrivals;
	while (*held)
		;
	return x + 2000;
}
`, `^a register of thread [0-9]+ points into it \(0x[0-9a-f]+\)$`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := consistencyTarget(t)
			applyOne(t, p.PID(), with(stack, patchOf(t, test.name+".c", test.source))...)
			stayIn(t, p, "keeps_calling")
			kept(t, p, unload(t, p.PID(), "--consistency", "entry", "stays"), "stays@1", test.why)
			asks(t, p, "finishes", 5, 8)
			goOn(t, p, "keeps_calling", 2005)
			unloaded(t, p, unload(t, p.PID(), "stays"), "stays@1")
			asks(t, p, "keeps_calling", 5, 6)
		})
	}
}

// TestUnloadRounds: a patch that goes in and is unloaded over and over leaves the
// process with what it had after the first time.
func TestUnloadRounds(t *testing.T) {
	t.Parallel()
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	p := consistencyTarget(t)
	original := testtarget.TextSnapshot(t, p.PID())
	patch := keepsPatch(t, "plain.c", `static void leave(long x) { (void)x; }`)
	round := func() {
		applyOne(t, p.PID(), with(stack, patch)...)
		asks(t, p, "recurses", 5, 1005)
		unloaded(t, p, unload(t, p.PID(), "--all"), "keeps@1")
		asks(t, p, "recurses", 5, 5)
	}
	round()
	first := resourcesOf(t, p.PID())
	for range rounds {
		round()
	}
	if last := resourcesOf(t, p.PID()); last != first {
		t.Errorf("after the first round %+v, after %d more %+v", first, rounds, last)
	}
	unchanged(t, original, p.PID())
}
