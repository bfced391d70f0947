package e2e

import (
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// This file has what the tests of entries, vtables, names and busy threads share:
// a program that calls functions by name, hotpatch's answers in JSON, and where
// things are in the target.

// callerSource is the source of a program that calls functions from long to long
// by their names. Commands on standard input:
//
//	NAME X           "NAME(X) = RESULT"
//	all X            the same for every function, then "all done"
//	thread NAME X    calls it in a new thread, which is named "worker"
//	                 and prints the same when the call returns: "begun TID" before
//	hold             sets the variable held to 1; what waits for it to become 0
//	release          goes on:               "held 1", "held 0"
//	ticks            "ticks N": how often a thread that never stops has counted
func callerSource(names []string) string {
	var b strings.Builder
	b.WriteString(`#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
volatile int held;
static volatile unsigned long ticks;
`)
	for _, name := range names {
		fmt.Fprintf(&b, "long %s(long);\n", name)
	}
	b.WriteString("static const struct { const char *name; long (*volatile call)(long); } table[] = {\n")
	for _, name := range names {
		fmt.Fprintf(&b, "\t{%q, %s},\n", name, name)
	}
	b.WriteString(`};
enum { count = sizeof table / sizeof *table };

struct job { int index; long x; };
static void *work(void *arg) {
	struct job *job = arg;
	pthread_setname_np(pthread_self(), "worker");
	printf("begun %d\n", gettid());
	printf("%s(%ld) = %ld\n", table[job->index].name, job->x, table[job->index].call(job->x));
	return NULL;
}
static void *tick(void *arg) {
	for (;;) {
		ticks++;
		usleep(500);
	}
	return arg;
}
static int find(const char *name) {
	for (int i = 0; i < count; i++)
		if (strcmp(table[i].name, name) == 0)
			return i;
	return -1;
}

int main(void) {
	pthread_t thread;
	setvbuf(stdout, NULL, _IOLBF, 0);
	pthread_create(&thread, NULL, tick, NULL);
	printf("READY %d\n", getpid());
	char line[256], name[128];
	long x;
	while (fgets(line, sizeof line, stdin) != NULL) {
		line[strcspn(line, "\n")] = 0;
		if (strcmp(line, "hold") == 0 || strcmp(line, "release") == 0) {
			held = line[0] == 'h';
			printf("held %d\n", held);
		} else if (strcmp(line, "ticks") == 0) {
			printf("ticks %lu\n", ticks);
		} else if (sscanf(line, "all %ld", &x) == 1) {
			for (int i = 0; i < count; i++)
				printf("%s(%ld) = %ld\n", table[i].name, x, table[i].call(x));
			printf("all done\n");
		} else if (sscanf(line, "thread %127s %ld", name, &x) == 2 && find(name) >= 0) {
			struct job *job = malloc(sizeof *job);
			*job = (struct job){find(name), x};
			pthread_create(&thread, NULL, work, job);
		} else if (sscanf(line, "%127s %ld", name, &x) == 2 && find(name) >= 0) {
			printf("%s(%ld) = %ld\n", name, x, table[find(name)].call(x));
		} else {
			printf("what is \"%s\"?\n", line);
		}
	}
}
`)
	return b.String()
}

// asks ends the test unless a function of a caller gives this result.
func asks(t testing.TB, p *testtarget.Process, function string, x, want int) {
	t.Helper()
	line := fmt.Sprintf("%s(%d) = %d", function, x, want)
	if got := p.Ask(fmt.Sprintf("%s %d", function, x), "^"+regexp.QuoteMeta(function)+`\(.* = `); got != line {
		t.Fatalf("the target says %q, want %q", got, line)
	}
}

// address is an address as hotpatch prints it in JSON.
type address uint64

// UnmarshalText reads 0x….
func (a *address) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 0, 64)
	*a = address(v)
	return err
}

// reply is the object that hotpatch prints with --json.
type reply struct {
	OK      bool            `json:"ok"`
	Command string          `json:"command"`
	Result  json.RawMessage `json:"result"`
	Error   *refusal        `json:"error"`
	Errors  []refusal       `json:"errors"`

	run testtarget.Result
}

// refusal is one error in it.
type refusal struct {
	Kind, Code, Message, What, Where, Why, Hint string
	Details                                     json.RawMessage
}

// all gives every error.
func (r reply) all() []refusal {
	if len(r.Errors) == 0 && r.Error != nil {
		return []refusal{*r.Error}
	}
	return r.Errors
}

// applyResult is the part of an apply's result that the tests look at.
type applyResult struct {
	Patch, State string
	Version      int
	Tries        int
	Notes        []string
	Replaced     []replacedState
}

type replacedState struct {
	Function, Module, Method string
	Mangled                  []string
	Old                      address
	Size                     uint64
	Sites                    []siteState
	Notes                    []string
}

type siteState struct {
	Address          address
	Kind, Old, Where string
}

// only gives the one function that was replaced.
func (r applyResult) only(t testing.TB) replacedState {
	t.Helper()
	if len(r.Replaced) != 1 {
		t.Fatalf("%d functions were replaced, want 1: %+v", len(r.Replaced), r.Replaced)
	}
	return r.Replaced[0]
}

// sites gives the places of one kind, of all functions.
func (r applyResult) sites(kind string) []siteState {
	var list []siteState
	for _, f := range r.Replaced {
		for _, s := range f.Sites {
			if s.Kind == kind {
				list = append(list, s)
			}
		}
	}
	return list
}

// notes gives all notes in one string.
func (r applyResult) notes() string {
	list := r.Notes
	for _, f := range r.Replaced {
		list = append(list, f.Notes...)
	}
	return strings.Join(list, "\n")
}

// tryApply runs apply with --json. The results are those of all patches.
func tryApply(t testing.TB, pid int, args ...string) (reply, []applyResult) {
	t.Helper()
	var r reply
	r.run = testtarget.RunJSON(t, &r, append([]string{"apply", "--pid", strconv.Itoa(pid)}, args...)...)
	if r.OK != (r.run.Exit == 0) || r.Command != "apply" {
		t.Fatalf("ok is %v, the command is %q\n%v", r.OK, r.Command, r.run)
	}
	return r, r.applied(t)
}

// applyOne applies one patch, which must succeed.
func applyOne(t testing.TB, pid int, args ...string) applyResult {
	t.Helper()
	r, results := tryApply(t, pid, patiently(args)...)
	if r.run.Exit != 0 || len(results) != 1 || results[0].State != "applied" {
		t.Fatalf("it should be applied\n%v", r.run)
	}
	return results[0]
}

// applyRefused runs apply, which must be refused with this status and code, in
// text as well as in JSON. It gives the refusal; several of the same code count
// as one.
func applyRefused(t testing.TB, pid, exit int, code string, args ...string) refusal {
	t.Helper()
	refused(t, exit, code, append([]string{"apply", "--pid", strconv.Itoa(pid)}, args...)...)
	r, _ := tryApply(t, pid, args...)
	for _, e := range r.all() {
		if e.Code == code && r.run.Exit == exit {
			return e
		}
	}
	t.Fatalf("it should exit with %d and %s\n%v", exit, code, r.run)
	return refusal{}
}

// mapping is one line of /proc/PID/maps.
type mapping struct {
	start, end  uint64
	perms, path string
}

func (m mapping) String() string { return fmt.Sprintf("%x-%x %s %s", m.start, m.end, m.perms, m.path) }

// mappings gives all mappings of a process.
func mappings(t testing.TB, pid int) []mapping {
	t.Helper()
	var list []mapping
	for _, line := range mapsOf(t, pid, "-") {
		var m mapping
		var offset uint64
		var device string
		var inode int
		n, err := fmt.Sscanf(line, "%x-%x %s %x %s %d", &m.start, &m.end, &m.perms, &offset, &device, &inode)
		if err != nil || n != 6 {
			t.Fatalf("%q: %v", line, err)
		}
		if fields := strings.Fields(line); len(fields) > 5 {
			m.path = strings.Join(fields[5:], " ")
		}
		list = append(list, m)
	}
	return list
}

// mappingAt gives the mapping that holds an address.
func mappingAt(t testing.TB, pid int, addr uint64) mapping {
	t.Helper()
	for _, m := range mappings(t, pid) {
		if m.start <= addr && addr < m.end {
			return m
		}
	}
	t.Fatalf("nothing is mapped at %#x", addr)
	return mapping{}
}

// exeSymbol gives the address of a symbol of the program that a process runs.
func exeSymbol(t testing.TB, pid int, name string) uint64 {
	t.Helper()
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	f, err := elf.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	path, err := os.Readlink(exe)
	if err != nil {
		t.Fatal(err)
	}
	var bias uint64
	if f.Type == elf.ET_DYN {
		for _, m := range mappings(t, pid) {
			if m.path == path {
				bias = m.start
				break
			}
		}
	}
	for _, s := range symbols {
		if s.Name == name {
			return bias + s.Value
		}
	}
	t.Fatalf("%s has no symbol %s", path, name)
	return 0
}

// applied gives the results of an apply.
func (r reply) applied(t testing.TB) []applyResult {
	t.Helper()
	var result struct{ Patches []applyResult }
	if len(r.Result) == 0 {
		return nil
	}
	if err := json.Unmarshal(r.Result, &result); err != nil {
		t.Fatalf("%v\n%v", err, r.run)
	}
	return result.Patches
}
