package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// intruderAsm has functions that others enter behind their first instruction, by
// every sort of direct branch, and two that only look so.
const intruderAsm = `
	.text
#define FUNCTION(name) .globl name; .type name, @function; name:
#define END(name) .size name, . - name
#define ENTERED(name) \
	.p2align 4; \
FUNCTION(name); \
	mov	%rdi, %rax; \
.Lin_##name: \
	add	$1, %rax; \
	nopl	0(%rax,%rax); \
	ret; \
END(name)

	ENTERED(far_jump)
	ENTERED(near_jump)
	.p2align 4
FUNCTION(jumps_near)
	lea	10(%rdi), %rax
	jmp	.Lin_near_jump
END(jumps_near)

	.skip	4096, 0x90
	ENTERED(far_call)
	ENTERED(far_condition)
	ENTERED(near_condition)
	.p2align 4
FUNCTION(near_when)
	lea	10(%rdi), %rax
	test	%rdi, %rdi
	jns	.Lin_near_condition
	ret
END(near_when)

	.skip	4096, 0x90
	.p2align 4
FUNCTION(jumps_far)
	lea	10(%rdi), %rax
	jmp	.Lin_far_jump
END(jumps_far)
	.p2align 4
FUNCTION(calls_far)
	lea	10(%rdi), %rax
	sub	$8, %rsp
	call	.Lin_far_call
	add	$8, %rsp
	ret
END(calls_far)
	.p2align 4
FUNCTION(far_when)
	lea	10(%rdi), %rax
	test	%rdi, %rdi
	jns	.Lin_far_condition
	ret
END(far_when)

// The bytes of a jump into the entry are there, but within another instruction.
	ENTERED(constant)
	.p2align 4
FUNCTION(has_constant)
	.byte	0x48, 0xba, 0xe9	// movabs $..., %rdx
	.long	.Lin_constant - . - 4
	.byte	0, 0, 0
	lea	10(%rdi), %rax
	ret
END(has_constant)

// To its first byte, everybody may jump.
	ENTERED(tail_called)
	.p2align 4
FUNCTION(tail_calls)
	add	$10, %rdi
	jmp	tail_called
END(tail_calls)
	.section .note.GNU-stack, "", @progbits
`

// TestSecondEntry: another function branches behind the first instruction of one,
// as variants of memcpy do. It must not be overwritten there.
func TestSecondEntry(t *testing.T) {
	t.Parallel()
	tests := []struct {
		function, neighbour string
		old                 int // what the neighbour gives for 5
		fits                bool
		patched             int // the same, when the function is patched
	}{
		{"far_jump", "jumps_far", 16, false, 0},
		{"near_jump", "jumps_near", 16, false, 0},
		{"far_call", "calls_far", 16, false, 0},
		{"far_condition", "far_when", 16, false, 0},
		{"near_condition", "near_when", 16, false, 0},
		{"constant", "has_constant", 15, true, 15},
		{"tail_called", "tail_calls", 16, true, 1015},
	}
	var names []string
	for _, test := range tests {
		names = append(names, test.function, test.neighbour)
	}
	program := testtarget.Build(t, testtarget.Spec{Name: "intruders", Flags: []string{"-O2"},
		Files: map[string]string{"main.c": callerSource(names), "intruders.S": intruderAsm}})
	for _, test := range some(tests, 0, 1, 5, 6) {
		t.Run(test.function, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, program)
			before := testtarget.TextSnapshot(t, p.PID())
			patch := calcPatch(t, test.function, 1000, "", 0)
			if test.fits {
				apply(t, p.PID(), patch)
				asks(t, p, test.function, 5, 1005)
				asks(t, p, test.neighbour, 5, test.patched)
				revert(t, p.PID())
			} else {
				r := applyRefused(t, p.PID(), 4, "branch-into-prologue", patch)
				entry := exeSymbol(t, p.PID(), test.function)
				if !strings.Contains(r.Why, test.neighbour) || !strings.Contains(r.Why, fmt.Sprintf("%#x", entry+3)) || r.Hint == "" {
					t.Errorf("it should name %s and the address %#x, and give a hint: %+v", test.neighbour, entry+3, r)
				}
				identical(t, before, p.PID())
			}
			asks(t, p, test.function, 5, 6)
			asks(t, p, test.neighbour, 5, test.old)
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

// TestCopyFunctions: whichever variants of memcpy and memset the C library has
// chosen on this machine, and whatever enters them, the target copies right.
func TestCopyFunctions(t *testing.T) {
	t.Parallel()
	program := testtarget.Build(t, testtarget.Spec{Name: "copying", Flags: []string{"-O1", "-fno-builtin"}, Files: map[string]string{"copying.c": `
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static char a[9000], b[9000];
static long rounds, bad;
static void check(int n) {
	for (int i = 0; i < n; i++)
		b[i] = (char)(i * 7 + n);
	memset(a, 1, sizeof a);
	bad += memcpy(a, b, n) != a || memcmp(a, b, n) != 0 || a[n] != 1;
	memset(a, 2, sizeof a);
	bad += mempcpy(a, b, n) != a + n || memcmp(a, b, n) != 0 || a[n] != 2;
	bad += memmove(a + 1, a, n) != a + 1 || memcmp(a + 1, b, n) != 0;
	rounds++;
}
int main(void) {
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("READY %d\n", getpid());
	char line[64];
	while (fgets(line, sizeof line, stdin) != NULL) {
		for (int n = 0; n < 8000; n = n * 5 / 4 + 1)
			check(n);
		printf("rounds %ld bad %ld\n", rounds, bad);
	}
}
`}})
	copies := func(t *testing.T, p *testtarget.Process) {
		t.Helper()
		for range 3 {
			if got := p.Ask("?", "^rounds "); !strings.HasSuffix(got, " bad 0") {
				t.Fatalf("the target says %q", got)
			}
		}
	}
	patches := map[string]string{
		"memcpy": "void *memcpy(void *to, const void *from, unsigned long n) {\n" +
			"\tvolatile char *a = to; const volatile char *b = from; while (n-- > 0) *a++ = *b++; return to; }\n",
		"memset": "void *memset(void *to, int c, unsigned long n) {\n" +
			"\tvolatile char *a = to; while (n-- > 0) *a++ = (char)c; return to; }\n",
		"mempcpy": "void *mempcpy(void *to, const void *from, unsigned long n) {\n" +
			"\tvolatile char *a = to; const volatile char *b = from; while (n-- > 0) *a++ = *b++; return (void *)a; }\n",
	}
	for name, source := range patches {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			patch := testtarget.Build(t, testtarget.Spec{Shared: true, Name: name + ".so", Flags: []string{"-O1", "-fno-builtin"}, Files: map[string]string{name + ".c": source}})
			p := testtarget.Start(t, program)
			copies(t, p)
			before := testtarget.TextSnapshot(t, p.PID())
			r := testtarget.Run(t, "apply", "--pid", strconv.Itoa(p.PID()), "--allow-aliases", patch)
			copies(t, p)
			t.Logf("exit %d: %s", r.Exit, r.Stderr)
			switch {
			case r.Exit == 0:
				verify(t, p.PID())
				revert(t, p.PID())
				copies(t, p)
			case r.Exit == 4:
				identical(t, before, p.PID())
			default:
				t.Error(r)
			}
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

// TestRefusedRevert: a revert that is refused says nothing of what it would have
// done, neither in text nor in JSON.
func TestRefusedRevert(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	pid := strconv.Itoa(p.PID())
	apply(t, p.PID(), calcPatch(t, "add_one", 1000, "refused", 1))
	at := listedAddress(t, p.PID(), "add_one")
	good := peek(t, p.PID(), at, 1)
	poke(t, p.PID(), at, []byte{0xcc})
	before := testtarget.TextSnapshot(t, p.PID())
	for _, args := range [][]string{{"--all"}, {"refused"}, {"--all", "--dry-run"}, {"--all", "--unload"}} {
		args = append([]string{"revert", "--pid", pid}, args...)
		if r := refused(t, 6, "memory-differs", args...); regexp.MustCompile(`taken out\b.*changed|(?m)^reverted|stopped for`).MatchString(r.Stdout) || strings.Contains(r.Stdout, "refused") {
			t.Errorf("nothing was taken out, and it says so\n%v", r)
		}
		var answer struct {
			OK     bool
			Result struct{ State string }
			Error  refusal
		}
		r := testtarget.RunJSON(t, &answer, args...)
		if r.Exit != 6 || answer.OK || answer.Error.Code != "memory-differs" || answer.Result.State != "refused" {
			t.Errorf("the state should be \"refused\"\n%v", r)
		}
	}
	identical(t, before, p.PID())
	checkList(t, p.PID(), map[string]string{"refused@1": "altered"})
	poke(t, p.PID(), at, good)
	answers(t, p, "add_one", 5, 1005)
	var answer struct{ Result struct{ State string } }
	if r := testtarget.RunJSON(t, &answer, "revert", "--pid", pid, "--all"); r.Exit != 0 || answer.Result.State != "reverted" {
		t.Fatal(r)
	}
	answers(t, p, "add_one", 5, 6)
	p.Healthy(t)
}

// TestOrdinaryUser: a user without rights does everything to his own process, also
// to one that root has patched before, and the other way round.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	testtarget.NeedRoot(t)
	nobody := credential(t, "nobody")
	dir := publicDir(t)
	hotpatch := copyTo(t, dir, testtarget.Hotpatch(t))
	program := copyTo(t, dir, testtarget.Build(t, testtarget.Spec{Sources: calcSources, Flags: []string{"-O2"}}))
	var patches [5]string // by version
	for version := 1; version < len(patches); version++ {
		patches[version] = copyTo(t, publicDir(t), calcPatch(t, "add_one", 1000*version, "own", version))
	}
	as := func(who *syscall.Credential, p *testtarget.Process, verb string, args ...string) {
		t.Helper()
		cmd := exec.Command(hotpatch, append([]string{verb, "--pid", strconv.Itoa(p.PID())}, args...)...)
		cmd.Dir, cmd.Env = dir, []string{"NO_COLOR=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
	root := &syscall.Credential{}
	for name, first := range map[string]*syscall.Credential{"nobody first": nobody, "root first": root} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, program, testtarget.Attr(func(a *syscall.SysProcAttr) { a.Credential = nobody }))
			original := testtarget.TextSnapshot(t, p.PID())
			as(first, p, "apply", patches[1])
			answers(t, p, "add_one", 5, 1005)
			as(nobody, p, "verify")
			as(nobody, p, "list")
			as(nobody, p, "apply", patches[2])
			answers(t, p, "add_one", 5, 2005)
			as(root, p, "apply", patches[3])
			answers(t, p, "add_one", 5, 3005)
			as(nobody, p, "revert", "own@3")
			answers(t, p, "add_one", 5, 2005)
			as(nobody, p, "revert", "--all")
			answers(t, p, "add_one", 5, 6)
			as(nobody, p, "apply", patches[1])
			answers(t, p, "add_one", 5, 1005)
			as(nobody, p, "apply", patches[4])
			answers(t, p, "add_one", 5, 4005)
			as(root, p, "revert", "--all")
			answers(t, p, "add_one", 5, 6)
			as(nobody, p, "apply", patches[4])
			as(nobody, p, "revert", "--all")
			answers(t, p, "add_one", 5, 6)
			as(root, p, "verify")
			unchanged(t, original, p.PID())
			p.Healthy(t)
		})
	}
}

// TestSecondWaits: while one hotpatch is at work, another one for the same process
// says that it waits, and then does its part.
func TestSecondWaits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	gate := filepath.Join(dir, "gate")
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	slow := testtarget.Build(t, testtarget.Spec{Name: "slow.so", Shared: true, Flags: []string{"-O2"}, Files: map[string]string{"slow.c": `
#include "hotpatch.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
HOTPATCH_NAME("slow", 1)
static int wait_for_gate(void) {
	const char *gate = getenv("GATE");
	puts("at the gate");
	while (gate != NULL && access(gate, F_OK) == 0)
		usleep(1000);
	return 0;
}
HOTPATCH_BEFORE_APPLY(wait_for_gate)
long add_one(long x);
long add_one(long x) { return x + 1000; }
`}})
	p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: calcSources, Flags: []string{"-O2"}}), testtarget.Env("GATE="+gate))
	pid := strconv.Itoa(p.PID())
	one := begin(t, "apply", "--pid", pid, "--timeout", "1m", slow)
	p.Line("^at the gate$", testtarget.Timeout)

	// A second one that may not wait long gives up, and one that may succeeds.
	r := testtarget.Run(t, "apply", "--pid", pid, "--timeout", "100ms", calcPatch(t, "recursive", 2000, "two", 1))
	if r.Exit != 3 || !strings.Contains(r.Stderr, "another hotpatch") {
		t.Errorf("it should exit with 3 and say that another hotpatch is at work\n%v", r)
	}
	two := begin(t, "apply", "--pid", pid, "--timeout", "1m", calcPatch(t, "recursive", 2000, "two", 1))
	answers(t, p, "recursive", 5, 5)
	time.Sleep(20 * time.Millisecond) // the second comes to the lock; if not, it succeeds without waiting
	if err := os.Remove(gate); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*command{one, two} {
		if r := c.end(t); r.Exit != 0 {
			t.Fatal(r)
		}
	}
	answers(t, p, "add_one", 5, 1005)
	answers(t, p, "recursive", 5, 2005)
	checkList(t, p.PID(), map[string]string{"slow@1": "active", "two@1": "active"})
	verify(t, p.PID())
	revert(t, p.PID())
	p.Healthy(t)
}
