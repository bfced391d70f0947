package e2e

import (
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// TestAliases: one function with two names.
func TestAliases(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, calcTarget(t, "gcc", "-O2"))
	pid := p.PID()
	before := testtarget.TextSnapshot(t, pid)
	one := calcPatch(t, "original_name", 1000, "one", 1)
	e := applyRefused(t, pid, 4, "alias", one)
	if !strings.Contains(e.Why, "alias_name") {
		t.Errorf("the message does not name the alias: %s", e.Why)
	}
	if e = applyRefused(t, pid, 4, "alias", calcPatch(t, "alias_name", 1000, "one", 1)); !strings.Contains(e.Why, "original_name") {
		t.Errorf("the message does not name the alias: %s", e.Why)
	}
	identical(t, before, pid)

	check := func(want int) {
		t.Helper()
		answers(t, p, "original_name", 5, want)
		answers(t, p, "alias_name", 5, want)
	}
	check(14)
	r := applyOne(t, pid, "--allow-aliases", one)
	if !strings.Contains(r.notes(), "alias_name") {
		t.Errorf("the notes do not say what else is replaced: %q", r.notes())
	}
	check(1005)
	revert(t, pid)
	check(14)
	// All names are meant.
	applyOne(t, pid, cPatch(t, `long original_name(long x) { return x + 2000; }
extern long alias_name(long x) __attribute__((alias("original_name")));
`))
	check(2005)
	revert(t, pid)
	// Each name is meant to become something else.
	applyRefused(t, pid, 4, "alias-conflict", cPatch(t, "long original_name(long x) { return x + 1; }\nlong alias_name(long x) { return x + 2; }\n"))
	check(14)
	unchanged(t, before, pid)
}

// TestIdenticalCodeFolding: functions that the linker or the compiler has folded
// into one.
func TestIdenticalCodeFolding(t *testing.T) {
	t.Parallel()
	t.Run("gold", func(t *testing.T) {
		t.Parallel()
		flags := []string{"-O2", "-fno-ipa-icf", "-ffunction-sections", "-fuse-ld=gold", "-Wl,--icf=all"}
		testtarget.Need(t, "ld.gold")
		foldedTwins(t, testtarget.Start(t, calcTarget(t, "gcc", flags...)), "twin_a", "twin_b", 36)
	})
	t.Run("gcc", func(t *testing.T) {
		t.Parallel()
		// Nobody takes the functions' addresses: gcc -fipa-icf makes one of them.
		const source = `
#define NOINLINE __attribute__((noinline))
NOINLINE static long left(long x) { return x * 5 + 11; }
NOINLINE static long right(long x) { return x * 5 + 11; }
long call_left(long x) { return left(x) + 0 * x; }
long call_right(long x) { long y = right(x); __asm__("" : "+r"(y)); return y; }
`
		names := []string{"call_left", "call_right"}
		p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Name: "icf", Flags: []string{"-O2", "-fipa-icf"},
			Files: map[string]string{"icf.c": source, "main.c": callerSource(names)}}))
		// What gcc has done: one of the two has no symbol any more, so naming it is
		// refused; the other one answers for both callers.
		asks(t, p, "call_left", 5, 36)
		asks(t, p, "call_right", 5, 36)
		before := testtarget.TextSnapshot(t, p.PID())
		found := map[string]bool{}
		for _, name := range []string{"left", "right"} {
			found[name] = strings.Contains(must(t, "symbols", "--pid", strconv.Itoa(p.PID()), name).Stdout, "icf.c")
		}
		if found["left"] && found["right"] {
			e := applyRefused(t, p.PID(), 4, "alias", cPatch(t, replacing("left", 1000)))
			if !strings.Contains(e.Why, "right") {
				t.Errorf("the message does not name the other function: %s", e.Why)
			}
		} else {
			gone := "left"
			if found["left"] {
				gone = "right"
			}
			applyRefused(t, p.PID(), 4, "no-symbol", cPatch(t, replacing(gone, 1000)))
		}
		identical(t, before, p.PID())
	})
}

// foldedTwins checks two functions of a calculator that share their code.
func foldedTwins(t *testing.T, p *testtarget.Process, a, b string, was int) {
	t.Helper()
	pid := p.PID()
	if at := exeSymbol(t, pid, a); at != exeSymbol(t, pid, b) {
		t.Fatalf("%s and %s are not folded", a, b)
	}
	before := testtarget.TextSnapshot(t, pid)
	patch := calcPatch(t, a, 1000, "fold", 1)
	if e := applyRefused(t, pid, 4, "alias", patch); !strings.Contains(e.Why, b) {
		t.Errorf("the message does not name %s: %s", b, e.Why)
	}
	identical(t, before, pid)
	answers(t, p, a, 5, was)
	applyOne(t, pid, "--allow-aliases", patch)
	answers(t, p, a, 5, 1005)
	answers(t, p, b, 5, 1005)
	revert(t, pid)
	answers(t, p, b, 5, was)
}

// TestIFunc: of an indirect function, the implementation that this process has
// chosen is replaced.
func TestIFunc(t *testing.T) {
	t.Parallel()
	for _, link := range some([]string{"-pie", "-no-pie"}, 0) {
		t.Run(link, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, calcTarget(t, "gcc", "-O2", link))
			pid := p.PID()
			before := testtarget.TextSnapshot(t, pid)
			answers(t, p, "chosen", 5, 19)
			r := applyOne(t, pid, calcPatch(t, "chosen", 1000, "ifunc", 1)).only(t)
			answers(t, p, "chosen", 5, 1005)
			if want := exeSymbol(t, pid, "chosen_better"); uint64(r.Old) != want {
				t.Errorf("%#x is replaced, want chosen_better at %#x", uint64(r.Old), want)
			}
			if !strings.Contains(strings.Join(r.Notes, "\n"), "IFUNC") {
				t.Errorf("the notes are %q", r.Notes)
			}
			verify(t, pid)
			revert(t, pid)
			answers(t, p, "chosen", 5, 19)
			unchanged(t, before, pid)
		})
	}
}

// TestClones: what the compiler has made of a function has another name and other
// parameters.
func TestClones(t *testing.T) {
	t.Parallel()
	const parts = `
#include <stdio.h>
#include <stdlib.h>
// gcc -O2 puts the beginning into its callers and splits the rest off.
static long split(long x) {
	if (x != 77)
		return x + 1;
	long y = 0;
	for (long i = 0; i < x; i++) {
		fprintf(stderr, "%ld %ld\n", i, y);
		y += i * x;
		if (y == 12345)
			abort();
		fprintf(stderr, "%ld %ld again\n", y, i);
	}
	return x + y;
}
__attribute__((noinline)) long use_a(long x) { return split(x); }
__attribute__((noinline)) long use_b(long x) { return split(x + 1) - 1; }
__attribute__((noinline)) long use_c(long x) { return split(x + 2) - 2; }
`
	names := []string{"use_a", "use_b", "use_c"}
	tests := []struct{ function, clone, exe string }{
		{"clone_constprop", "clone_constprop.constprop.0", calcTarget(t, "gcc", "-O2")},
		{"clone_isra", "clone_isra.isra.0", calcTarget(t, "gcc", "-O2")},
		{"split", "split.part.0", testtarget.Build(t, testtarget.Spec{Name: "parts", Compiler: "gcc", Flags: []string{"-O2"},
			Files: map[string]string{"parts.c": parts, "main.c": callerSource(names)}})},
	}
	for _, test := range tests {
		t.Run(test.clone, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, test.exe)
			exeSymbol(t, p.PID(), test.clone) // the compiler has made it
			before := testtarget.TextSnapshot(t, p.PID())
			for code, patch := range map[string]string{
				"clones-only": calcPatch(t, test.function, 1000, "clone", 1),
				"no-symbol":   cPatch(t, replacing(test.function, 1000)),
			} {
				if e := applyRefused(t, p.PID(), 4, code, patch); !strings.Contains(e.Why, test.clone) {
					t.Errorf("the message does not name %s: %s", test.clone, e.Why)
				}
			}
			identical(t, before, p.PID())
		})
	}
	t.Run("by its own name", func(t *testing.T) {
		t.Parallel()
		p := testtarget.Start(t, calcTarget(t, "gcc", "-O2"))
		answers(t, p, "with_constprop", 5, 35)
		applyOne(t, p.PID(), cPatch(t, replacing("clone_constprop.constprop.0", 1000)))
		answers(t, p, "with_constprop", 5, 5+1000+6+1000-5-31)
		revert(t, p.PID())
		answers(t, p, "with_constprop", 5, 35)
	})
	t.Run("cold", func(t *testing.T) {
		t.Parallel()
		p := testtarget.Start(t, calcTarget(t, "gcc", "-O2"))
		exeSymbol(t, p.PID(), "clone_cold.cold")
		answers(t, p, "clone_cold", 5, 37)
		r := applyOne(t, p.PID(), calcPatch(t, "clone_cold", 1000, "cold", 1))
		answers(t, p, "clone_cold", 5, 1005)
		if len(r.Replaced) != 1 {
			t.Errorf("%d functions are replaced: the cold part belongs to its function", len(r.Replaced))
		}
		revert(t, p.PID())
		answers(t, p, "clone_cold", 5, 37)
	})
}
