package e2e

import (
	"encoding/json"
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

	"golang.org/x/sys/unix"

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

// hostSource opens and closes a plug-in. Commands on standard input:
//
//	open PATH   "opened ADDRESS": where its function is
//	close       "closed"
//	ask X       "plugin(X) = RESULT", "no plugin"
const hostSource = `
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static void *handle;
static long (*plugin)(long);
int main(void) {
	char line[4096], path[4096];
	long x;
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (sscanf(line, "open %4095s", path) == 1) {
			handle = dlopen(path, RTLD_NOW);
			plugin = handle == NULL ? NULL : (long (*)(long))dlsym(handle, "plugin");
			printf("opened %p\n", (void *)plugin);
		} else if (strcmp(line, "close\n") == 0) {
			dlclose(handle);
			plugin = NULL;
			printf("closed\n");
		} else if (sscanf(line, "ask %ld", &x) == 1) {
			if (plugin == NULL)
				printf("no plugin\n");
			else
				printf("plugin(%ld) = %ld\n", x, plugin(x));
		}
	}
}
`

// pluginHost starts a program with a plug-in that adds plus, and gives the
// plug-in's path and the address of its function.
func pluginHost(t *testing.T) (p *testtarget.Process, path string, at uint64) {
	t.Helper()
	p = testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Name: "host", Flags: []string{"-O2"}, Files: map[string]string{"host.c": hostSource}}))
	path = pluginLibrary(t, 1)
	return p, path, openPlugin(t, p, path)
}

func pluginLibrary(t *testing.T, plus int) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Name: "plugin.so", Shared: true, Flags: []string{"-O2", fmt.Sprintf("-DPLUS=%d", plus)},
		Files: map[string]string{"plugin.c": "long plugin(long x) { __asm__ volatile(\"\" : \"+r\"(x)); return x + PLUS; }\n"}})
}

func openPlugin(t *testing.T, p *testtarget.Process, path string) uint64 {
	t.Helper()
	at, err := strconv.ParseUint(strings.TrimPrefix(p.Ask("open "+path, "^opened "), "opened 0x"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func pluginSays(t *testing.T, p *testtarget.Process, want string) {
	t.Helper()
	if got := p.Ask("ask 5", `^(no )?plugin`); got != want {
		t.Fatalf("the target says %q, want %q", got, want)
	}
}

// untouched ends the test unless all code and constants of files but hotpatch's
// are as before: its own pages may change.
func untouched(t *testing.T, before testtarget.Snapshot, pid int) {
	t.Helper()
	if diff := testtarget.Diff(ownedBy(before, "hotpatch"), ownedBy(testtarget.TextSnapshot(t, pid), "hotpatch")); len(diff) > 0 {
		t.Fatalf("process %d has changed:\n%s", pid, strings.Join(diff, "\n"))
	}
}

// TestReopenedPlugin: the program closes a patched plug-in and opens it again, at
// the same place: its code is the original, whatever the ledger says.
func TestReopenedPlugin(t *testing.T) {
	t.Parallel()
	p, path, at := pluginHost(t)
	pid := strconv.Itoa(p.PID())
	patch := calcPatch(t, "plugin", 1000, "plugin", 1)
	original := peek(t, p.PID(), at, 16)
	apply(t, p.PID(), patch)
	pluginSays(t, p, "plugin(5) = 1005")
	p.Ask("close", "^closed")
	if again := openPlugin(t, p, path); again != at {
		t.Fatalf("the plug-in is at %#x now, and was at %#x: the test has no case", again, at)
	}
	pluginSays(t, p, "plugin(5) = 6")
	found := testtarget.TextSnapshot(t, p.PID())

	applyRefused(t, p.PID(), 6, "memory-differs", patch)
	applyRefused(t, p.PID(), 6, "memory-differs", "--dry-run", patch)
	applyRefused(t, p.PID(), 6, "memory-differs", calcPatch(t, "plugin", 2000, "plugin", 2))
	states, r := processesOf(t, "verify", "--pid", pid)
	if r.Exit != 6 || len(states) != 1 || len(states[0].Differences) != 1 || states[0].Differences[0].Address != fmt.Sprintf("%#x", at) {
		t.Fatalf("verify should exit with 6 and name %#x\n%v", at, r)
	}
	checkList(t, p.PID(), map[string]string{"plugin@1": "altered"})
	identical(t, found, p.PID())

	if r := revert(t, p.PID(), "plugin"); !strings.Contains(r.Stdout, "taken out") {
		t.Fatal(r)
	}
	untouched(t, found, p.PID())
	if now := peek(t, p.PID(), at, 16); string(now) != string(original) {
		t.Fatalf("the plug-in's code is % x and was % x", now, original)
	}
	checkList(t, p.PID(), nil)
	verify(t, p.PID())
	pluginSays(t, p, "plugin(5) = 6")
	// From here on all is as with any other process.
	apply(t, p.PID(), patch)
	pluginSays(t, p, "plugin(5) = 1005")
	verify(t, p.PID())
	revert(t, p.PID())
	pluginSays(t, p, "plugin(5) = 6")
	p.Healthy(t)
}

// TestClosedPlugin: a patched plug-in is gone for good. The patch can be taken
// out, and what else is patched stays so.
func TestClosedPlugin(t *testing.T) {
	t.Parallel()
	p, path, at := pluginHost(t)
	pid := strconv.Itoa(p.PID())
	patch := calcPatch(t, "plugin", 1000, "plugin", 1)
	apply(t, p.PID(), patch)
	pluginSays(t, p, "plugin(5) = 1005")
	p.Ask("close", "^closed")
	for _, m := range mappings(t, p.PID()) {
		if m.start <= at && at < m.end {
			t.Fatalf("the plug-in is still mapped: %v", m)
		}
	}
	if r := testtarget.Run(t, "verify", "--pid", pid); r.Exit != 6 {
		t.Errorf("verify should exit with 6\n%v", r)
	}
	before := testtarget.TextSnapshot(t, p.PID())
	revert(t, p.PID())
	untouched(t, before, p.PID())
	checkList(t, p.PID(), nil)
	verify(t, p.PID())
	pluginSays(t, p, "no plugin")
	openPlugin(t, p, path)
	apply(t, p.PID(), patch)
	pluginSays(t, p, "plugin(5) = 1005")
	revert(t, p.PID())
	pluginSays(t, p, "plugin(5) = 6")
	p.Healthy(t)
}

// TestOtherPlugin: where a patched plug-in was there is another library now.
// Nothing is written into it.
func TestOtherPlugin(t *testing.T) {
	t.Parallel()
	p, path, at := pluginHost(t)
	pid := strconv.Itoa(p.PID())
	apply(t, p.PID(), calcPatch(t, "plugin", 1000, "plugin", 1))
	p.Ask("close", "^closed")
	other := pluginLibrary(t, 0x12345) // another instruction in the same place
	if now := openPlugin(t, p, other); now != at {
		t.Fatalf("the other plug-in is at %#x, and the first was at %#x: the test has no case", now, at)
	}
	foreign := testtarget.TextSnapshot(t, p.PID())
	refused(t, 6, "memory-differs", "revert", "--pid", pid, "--all")
	if r := testtarget.Run(t, "verify", "--pid", pid); r.Exit != 6 {
		t.Errorf("verify should exit with 6\n%v", r)
	}
	identical(t, foreign, p.PID())
	pluginSays(t, p, fmt.Sprintf("plugin(5) = %d", 5+0x12345))
	// The first is back: its code is the original one.
	p.Ask("close", "^closed")
	if again := openPlugin(t, p, path); again != at {
		t.Fatalf("the plug-in is at %#x now, and was at %#x: the test has no case", again, at)
	}
	revert(t, p.PID())
	verify(t, p.PID())
	pluginSays(t, p, "plugin(5) = 6")
	p.Healthy(t)
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

// TestFewDescriptors: hotpatch itself may open few files. It says so, blames no
// file for it, and the target goes on.
func TestFewDescriptors(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "prlimit")
	s := testtarget.Spec{Compiler: "g++", Flags: []string{"-O2"}} // so there are some libraries
	p := testtarget.Start(t, testtarget.Build(t, answerSpec(s)))
	patch := answerPatchOf(t, s, 1)
	original := testtarget.TextSnapshot(t, p.PID())
	begun, first, last := 0, 4, 60
	said := make(map[string]int)
	for limit := first; limit <= last; limit++ {
		if limit > 24 && limit%4 != 0 || testing.Short() && limit%8 != 0 {
			continue
		}
		r := withDescriptors(t, limit, "apply", "--pid", strconv.Itoa(p.PID()), "--json", patch)
		if r.Exit == 0 {
			answerSays(t, p, 1)
			revert(t, p.PID())
			continue
		}
		var answer reply
		if err := json.Unmarshal([]byte(r.Stdout), &answer); err != nil || answer.Error == nil {
			t.Fatalf("limit %d: %v\n%v", limit, err, r)
		}
		t.Logf("limit %d: exit %d, %s", limit, r.Exit, answer.Error.Message)
		why := answer.Error.Code + ": " + answer.Error.Why
		said[answer.Error.Code]++
		if r.Exit != 1 || strings.Contains(r.Stdout, "damaged") || !strings.Contains(why, "too many open files") {
			t.Errorf("limit %d: it should exit with 1 and speak of too many open files\n%v", limit, r)
		}
		if answer.Error.Code == "no-descriptors" && !strings.Contains(answer.Error.Hint, "ulimit -n") {
			t.Errorf("limit %d: it should hint at ulimit\n%v", limit, r)
		}
		for _, result := range answer.applied(t) {
			begun++
			if result.State != "refused" {
				t.Errorf("limit %d: it should end before anything is begun\n%v", limit, r)
			}
		}
		untouched(t, original, p.PID())
		answerSays(t, p, 0)
		p.Healthy(t)
	}
	if begun == 0 || said["no-descriptors"] < 2 {
		t.Errorf("limits %d to %d: %v, %d with a plan: not every case was met", first, last, said, begun)
	}
	if r := withDescriptors(t, 5, "apply", "--pid", strconv.Itoa(p.PID()), patch); r.Exit != 1 || !strings.Contains(r.Stderr, "[no-descriptors]") {
		t.Errorf("it should exit with 1 and say [no-descriptors]\n%v", r)
	}
	apply(t, p.PID(), patch)
	answerSays(t, p, 1)
}

// withDescriptors runs hotpatch with a limit of open files.
func withDescriptors(t *testing.T, limit int, args ...string) testtarget.Result {
	t.Helper()
	cmd := exec.Command("prlimit", append([]string{fmt.Sprintf("--nofile=%d:%d", limit, limit), testtarget.Hotpatch(t)}, args...)...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return testtarget.Result{Args: args, Stdout: stdout.String(), Stderr: stderr.String(), Exit: cmd.ProcessState.ExitCode()}
}

// TestTargetWithoutDescriptors: the target has none left. That is no fault of the
// patch.
func TestTargetWithoutDescriptors(t *testing.T) {
	t.Parallel()
	patch := calcPatch(t, "add_one", 1000, "none", 1)
	for _, left := range []int{0, 1} {
		t.Run(fmt.Sprintf("%d left", left), func(t *testing.T) {
			t.Parallel()
			p := calculator(t)
			pid := strconv.Itoa(p.PID())
			limit := limitFor(t, p.PID(), left)
			count := resourcesOf(t, p.PID()).descriptors
			var was unix.Rlimit
			if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, nil, &was); err != nil {
				t.Fatal(err)
			}
			few := was
			few.Cur = limit
			if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &few, nil); err != nil {
				t.Fatal(err)
			}
			before := testtarget.TextSnapshot(t, p.PID())
			r := testtarget.Run(t, "apply", "--pid", pid, patch)
			code := []string{"[no-memfd]", "[dlopen]"}[left]
			if r.Exit != 1 || !strings.Contains(r.Stderr, code) || !strings.Contains(r.Stderr, "descriptor") {
				t.Errorf("it should exit with 1, say %s and hint at descriptors\n%v", code, r)
			}
			unchanged(t, before, p.PID())
			answers(t, p, "add_one", 5, 6)
			checkList(t, p.PID(), nil)
			p.Healthy(t)
			if now := resourcesOf(t, p.PID()).descriptors; now != count {
				t.Errorf("there are %d descriptors, want %d", now, count)
			}
			if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &was, nil); err != nil {
				t.Fatal(err)
			}
			apply(t, p.PID(), patch)
			answers(t, p, "add_one", 5, 1005)
			revert(t, p.PID())
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

// TestPatchKeepsDescriptors: what a patch opens in a constructor or a hook is the
// program's, and what its loading needs is not.
func TestPatchKeepsDescriptors(t *testing.T) {
	t.Parallel()
	patch := testtarget.Build(t, testtarget.Spec{Name: "keeps.so", Shared: true, Flags: []string{"-O1"}, Files: map[string]string{"keeps.c": `
#include "hotpatch.h"
#include <fcntl.h>
#include <unistd.h>
HOTPATCH_NAME("keeps", 1)
static int early = -1, late = -1;
__attribute__((constructor)) static void opens(void) { early = open("/proc/self/status", O_RDONLY); }
static int opens_too(void) { return late = open("/proc/self/maps", O_RDONLY), late < 0; }
HOTPATCH_BEFORE_APPLY(opens_too)
static int closes(void) { return close(late); }
HOTPATCH_AFTER_REVERT(closes)
long add_one(long x);
long add_one(long x) {
	char b[6];
	return x + (pread(early, b, 6, 0) == 6 && b[0] == 'N') + 1000 * (pread(late, b, 6, 0) == 6);
}
`}})
	p := calculator(t)
	count := resourcesOf(t, p.PID()).descriptors
	for range 3 {
		apply(t, p.PID(), patch)
		answers(t, p, "add_one", 5, 1006)
		if now := resourcesOf(t, p.PID()).descriptors; now != count+2 {
			t.Errorf("there are %d descriptors, want %d", now, count+2)
		}
		revert(t, p.PID())
		answers(t, p, "add_one", 5, 6)
		if now := resourcesOf(t, p.PID()).descriptors; now != count+1 { // the library stays, and its constructor does not run again
			t.Errorf("there are %d descriptors, want %d", now, count+1)
		}
	}
	p.Healthy(t)
}

// limitFor gives the limit of open files with which a process can open so many
// more. It may have inherited some, and so have gaps.
func limitFor(t *testing.T, pid, more int) uint64 {
	t.Helper()
	for limit := 0; ; limit++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", pid, limit)); err == nil {
			continue
		} else if !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if more == 0 {
			return uint64(limit)
		}
		more--
	}
}
