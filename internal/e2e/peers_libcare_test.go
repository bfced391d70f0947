package e2e

import (
	"regexp"
	"testing"

	"hotpatch/internal/testtarget"
)

// The scenarios of libcare's tests, re-created: what a replaced function may refer to.
// peers_test.go says which test stands for which scenario of which tool.

// careLibrary and careFunctions are a library and a program whose functions the patches
// replace.
var careLibrary = testtarget.Spec{Name: "libcare_lib.so", Shared: true, Flags: []string{"-O2"}, Files: map[string]string{"lib.c": `
__attribute__((noinline)) long in_library(long x) { __asm__ volatile("" : "+r"(x)); return x + 10; }
static __thread long private_local = 300;
__thread long local = 200;
__attribute__((noinline)) long reads_local(long x) { return x + local++ + private_local++; }
static long better(long x) { return x + 14; }
static long (*resolve(void))(long) { return better; }
long chosen(long x) __attribute__((ifunc("resolve")));
`}}

const careFunctions = `
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))
#define FUNCTION(name, plus) __attribute__((noinline)) long name(long x); \
	__attribute__((noinline)) long name(long x) { OPAQUE(x); return x + plus; }
FUNCTION(simplest, 1)
FUNCTION(first, 1)
FUNCTION(second, 2)
FUNCTION(third, 3)
__attribute__((noinline)) static long care_unpatched(long x) { OPAQUE(x); return x * 2; }
__attribute__((noinline)) long calls_unpatched(long x) { return care_unpatched(x) + 1; }
static const char care_text[] = "the original text";
__attribute__((noinline)) long length(long x) { const char *s = care_text + x; OPAQUE(s); return (long)strlen(s); }
__attribute__((noinline)) long error_stream(long x) { OPAQUE(x); return (long)&stderr + x; }
__thread long thread_own = 7;
__attribute__((noinline)) long *where_own(void) { return &thread_own; }
__attribute__((noinline)) long own(long x) { OPAQUE(x); return x + thread_own; }
// As careful code has it: -O2, a rare path, a switch, and the state in a static.
static long machine_state;
__attribute__((noinline)) long machine(long x) {
	OPAQUE(x);
	if (__builtin_expect(x < -1000, 0))
		printf("rare %ld\n", x);
	switch (machine_state % 4) {
	case 0: machine_state += 1; return x + 40;
	case 1: machine_state += 2; return x + 41;
	case 2: machine_state += 3; return x + 42;
	default: machine_state += 5; return x + 43;
	}
}
`

// TestReferencesOfPatches: new code refers to what is there: libc and its data, other
// functions of the program and of its library, their constants, thread-local variables
// and indirect functions; and to what the patch brings.
func TestReferencesOfPatches(t *testing.T) {
	t.Parallel()
	const header = "#include \"hotpatch.h\"\n#include <stdio.h>\n#include <string.h>\n"
	tests := []struct {
		name, function string
		old            int // what it gives for 5
		patch          string
		patched        int
		prints         string
	}{
		{"simplest", "simplest", 6, "long simplest(long x) { return x + 1000; }", 1005, ""},
		{"shared", "in_library", 15, "long in_library(long x) { return x + 1000; }", 1005, ""},
		{"shared_ref_glibc", "in_library", 15, "long in_library(long x) { char b[32]; return snprintf(b, sizeof b, \"%0*ld\", 20, x) + 1000; }", 1020, ""},
		{"ref_glibc", "simplest", 6, "long simplest(long x) { puts(\"from the patch\"); return x + 1000; }", 1005, "^from the patch$"},
		{"ref_glibc_data", "error_stream", 0, "long error_stream(long x) { return fprintf(stderr, \"on the stream\\n\") + x; }", 19, "^on the stream$"},
		{"ref_orig_single", "calls_unpatched", 11, "HOTPATCH_REF_FUNC(long, care_unpatched, (long), \"care_unpatched\")\nlong calls_unpatched(long x) { return care_unpatched(x) + 1000; }", 1010, ""},
		{"ref_rodata", "length", 12, "HOTPATCH_REF_VAR(char, text, \"care_text\")\nlong length(long x) { return (long)strlen(text + 2); }", 15, ""},
		{"new_func", "simplest", 6, "long added(long x);\nHOTPATCH_KEEP(added)\n__attribute__((noinline)) long added(long x) { return x * 3; }\nlong simplest(long x) { return added(x) + 1000; }", 1015, ""},
		{"new static", "simplest", 6, "static long seen = 1000;\nlong simplest(long x) { return x + seen++; }", 1005, ""},
		{"ifunc", "simplest", 6, "long chosen(long);\nlong simplest(long x) { return chosen(x) + 1000; }", 1019, ""},
		{"tls_simple", "own", 12, "extern __thread long thread_own;\nlong *where_own(void);\nlong own(long x) { return x + (where_own() == &thread_own && thread_own == 7 ? 1000 : 0); }", 1005, ""},
		{"tls_shared", "reads_local", 505, "extern __thread long local;\nlong reads_local(long x) { return x + local + 1000; }", 1206, ""},
	}
	for _, test := range some(tests, 0, 3, 5) {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := careProgram(t)
			before := testtarget.TextSnapshot(t, p.PID())
			if test.old != 0 {
				asks(t, p, test.function, 5, test.old)
			}
			apply(t, p.PID(), patchOf(t, "care.c", header+"HOTPATCH_NAME(\"care\", 1)\nlong "+test.function+"(long x);\n"+test.patch+"\n"))
			if test.prints == "" {
				asks(t, p, test.function, 5, test.patched)
			} else {
				if got := p.Ask(test.function+" 5", test.prints); !regexp.MustCompile(test.prints).MatchString(got) {
					t.Errorf("it prints %q", got)
				}
				asks(t, p, test.function, 5, test.patched)
			}
			revert(t, p.PID())
			if test.old != 0 && test.name != "tls_shared" { // which counts
				asks(t, p, test.function, 5, test.old)
			}
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

func careProgram(t *testing.T, flags ...string) *testtarget.Process {
	t.Helper()
	names := []string{"simplest", "first", "second", "third", "calls_unpatched", "length", "error_stream", "own", "machine", "in_library", "reads_local", "chosen"}
	return testtarget.Start(t, testtarget.Build(t, testtarget.Spec{
		Name: "care", Flags: append([]string{"-O2", "-rdynamic"}, flags...), Libs: []string{testtarget.Build(t, careLibrary)},
		Files: map[string]string{"main.c": callerSource(names), "functions.c": careFunctions},
	}))
}

// TestOneOfTwoThreads: of two threads, each with a function of its own, only one has its
// function replaced.
func TestOneOfTwoThreads(t *testing.T) {
	t.Parallel()
	p := careProgram(t)
	apply(t, p.PID(), patchOf(t, "second.c", "#include \"hotpatch.h\"\nHOTPATCH_NAME(\"second\", 1)\nHOTPATCH_REF_FUNC(long, care_unpatched, (long), \"care_unpatched\")\nlong second(long x);\nlong second(long x) { return care_unpatched(x) + 1000; }\n"))
	p.Send("thread first 5")
	p.Line(`^first\(5\) = 6$`, testtarget.Timeout)
	p.Send("thread second 5")
	p.Line(`^second\(5\) = 1010$`, testtarget.Timeout)
	revert(t, p.PID())
	p.Send("thread second 5")
	p.Line(`^second\(5\) = 7$`, testtarget.Timeout)
	p.Healthy(t)
}

// TestProgramAndLibraryTogether: one patch of functions of the program and of its
// library, and then its next level.
func TestProgramAndLibraryTogether(t *testing.T) {
	t.Parallel()
	p := careProgram(t)
	before := testtarget.TextSnapshot(t, p.PID())
	level := func(version, plus string) string {
		return patchOf(t, "both.c", "#include \"hotpatch.h\"\nHOTPATCH_NAME(\"both\", "+version+")\nlong simplest(long x);\nlong in_library(long x);\n"+
			"long simplest(long x) { return x + "+plus+"; }\nlong in_library(long x) { return x + 10 * "+plus+"; }\n")
	}
	apply(t, p.PID(), level("1", "1000"))
	asks(t, p, "simplest", 5, 1005)
	asks(t, p, "in_library", 5, 10005)
	apply(t, p.PID(), level("2", "2000"))
	asks(t, p, "simplest", 5, 2005)
	asks(t, p, "in_library", 5, 20005)
	checkList(t, p.PID(), map[string]string{"both@1": "shadowed", "both@2": "active"})
	revert(t, p.PID(), "both@2")
	asks(t, p, "simplest", 5, 1005)
	asks(t, p, "in_library", 5, 10005)
	revert(t, p.PID())
	asks(t, p, "simplest", 5, 6)
	asks(t, p, "in_library", 5, 15)
	unchanged(t, before, p.PID())
	p.Healthy(t)
}

// TestBuildsOfPrograms: what a compiler and a linker may do to a program that others
// cannot patch then.
func TestBuildsOfPrograms(t *testing.T) {
	t.Parallel()
	patch := patchOf(t, "machine.c", `#include "hotpatch.h"
HOTPATCH_NAME("machine", 1)
HOTPATCH_REF_VAR(long, machine_state, "machine_state")
long machine(long x);
long machine(long x) { return x + 1000 + (*machine_state)++; }
`)
	for _, flags := range some([][]string{{"-O2"}, {"-O0"}, {"-O3", "-g"}, {"-flto", "-fno-inline"}, {"-no-pie", "-fno-pie"}, {"-Wl,-z,now"}, {"-fcf-protection=full"}, {"-freorder-blocks-and-partition", "-O3"}}, 0, 3) {
		t.Run(flags[0], func(t *testing.T) {
			t.Parallel()
			p := careProgram(t, flags...)
			before := testtarget.TextSnapshot(t, p.PID())
			asks(t, p, "machine", 5, 45)
			asks(t, p, "machine", 5, 46)
			apply(t, p.PID(), patch)
			asks(t, p, "machine", 5, 1008) // the state goes on from 3
			asks(t, p, "machine", 5, 1009)
			revert(t, p.PID())
			asks(t, p, "machine", 5, 46) // and from 5
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}
