package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

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
