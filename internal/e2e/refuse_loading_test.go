package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// TestRefuseWhileLoading: patches that look well until the target's own loader,
// or their own code, refuses. hotpatch's region may stay; the library, and any
// other change, must not. A good patch is applied afterwards.
func TestRefuseWhileLoading(t *testing.T) {
	t.Parallel()
	gone := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"gone.c": "int gone(void) { return 1; }\n"}, Shared: true,
		Flags: []string{"-Wl,-soname,libhotpatch-gone.so.1"}})
	tests := []struct {
		name, file, source string
		libs               []string
		refusing
	}{
		{"undefined function", "u.c", "int no_such_function(int); long add_one(long x) { return no_such_function((int)x); }\n", nil,
			refusing{4, "dlopen", []string{"undefined symbol: no_such_function", "HOTPATCH_REF"}}},
		{"undefined variable", "u.c", "extern long no_such_variable; long add_one(long x) { return x + no_such_variable; }\n", nil,
			refusing{4, "dlopen", []string{"undefined symbol: no_such_variable"}}},
		{"missing library", "u.c", "int gone(void); long add_one(long x) { return x + gone(); }\n", []string{gone},
			refusing{4, "dlopen", []string{"libhotpatch-gone.so.1", "cannot open shared object file", "cannot find"}}},
		{"throwing constructor", "u.cc", `#include <stdexcept>
			static int begin() { throw std::runtime_error("no"); }
			static int started = begin();
			extern "C" long add_one(long x) { return x + started; }`, nil,
			refusing{4, "constructor", []string{"std::runtime_error"}}},
		{"throwing hook", "u.cc", `#include "hotpatch.h"
			#include <stdexcept>
			static int before() { throw std::out_of_range("no"); }
			HOTPATCH_BEFORE_APPLY(before)
			extern "C" long add_one(long x) { return x + 1000; }`, nil,
			refusing{1, "hook", []string{"before-apply", "std::out_of_range"}}},
		{"failing hook", "u.c", `#include "hotpatch.h"
			static int before(void) { return -3; }
			HOTPATCH_BEFORE_APPLY(before)
			long add_one(long x); long add_one(long x) { return x + 1000; }`, nil,
			refusing{1, "hook", []string{"before-apply", "returned -3"}}},
		{"second failing hook", "u.c", `#include "hotpatch.h"
			static int first(void) { return 0; }
			static int second(void) { return 1; }
			HOTPATCH_BEFORE_APPLY(first)
			HOTPATCH_BEFORE_APPLY(second)
			long add_one(long x); long add_one(long x) { return x + 1000; }`, nil,
			refusing{1, "hook", []string{"before-apply", "hook 2 of 2", "returned 1"}}},
	}
	tests = some(tests, 0, 2, 3, 5)
	// The program has the C++ library already, so that nothing but the patch
	// library comes and goes.
	exe := testtarget.Build(t, testtarget.Spec{Sources: calcSources, Flags: []string{"-O2", "-Wl,--no-as-needed", "-lstdc++", "-lgcc_s"}})
	good := calcPatch(t, "add_one", 2000, "good", 1)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			patch := testtarget.Build(t, testtarget.Spec{Files: map[string]string{tt.file: tt.source}, Shared: true, Libs: tt.libs, Flags: []string{"-O1", "-fPIC"}})
			p := testtarget.Start(t, exe)
			pid := strconv.Itoa(p.PID())
			original := testtarget.TextSnapshot(t, p.PID())
			threads := threadsOf(t, p.PID())
			tt.check(t, "apply", "--pid", pid, patch)
			onlyRegion(t, original, p.PID())
			after := len(mapsOf(t, p.PID(), "-"))
			tt.check(t, "apply", "--pid", pid, patch)
			onlyRegion(t, original, p.PID())
			if n := len(mapsOf(t, p.PID(), "-")); n > after {
				t.Errorf("it had %d mappings after the first time and has %d after the second", after, n)
			}
			hasThreads(t, p.PID(), threads)
			if files := memfdsOf(t, p.PID()); len(files) > 0 {
				t.Errorf("it has open files of hotpatch: %q", files)
			}
			p.Healthy(t)
			answers(t, p, "add_one", 1, 2)
			if r := must(t, "list", "--pid", pid); strings.Contains(r.Stdout, "add_one") {
				t.Errorf("a patch is listed\n%v", r)
			}
			verify(t, p.PID())

			apply(t, p.PID(), good)
			answers(t, p, "add_one", 1, 2001)
			revert(t, p.PID())
			unchanged(t, original, p.PID())
			answers(t, p, "add_one", 1, 2)
		})
	}
}

// onlyRegion ends the test unless the process is as before but for hotpatch's
// own region and ledger: anonymous memory, and not a library.
func onlyRegion(t *testing.T, before testtarget.Snapshot, pid int) {
	t.Helper()
	anonymous := regexp.MustCompile(`^added [0-9a-f]+-[0-9a-f]+ r-[x-]p$`)
	for _, line := range testtarget.Diff(before, testtarget.TextSnapshot(t, pid)) {
		if !anonymous.MatchString(line) {
			t.Errorf("process %d: %s", pid, line)
		}
	}
	if libraries := mapsOf(t, pid, "memfd:"); len(libraries) > 0 {
		t.Errorf("process %d has a patch library mapped:\n%s", pid, strings.Join(libraries, "\n"))
	}
	if t.Failed() {
		t.FailNow()
	}
}

// hasThreads ends the test unless a process has so many threads. The agent's,
// which hotpatch has told to end, may take a moment.
func hasThreads(t *testing.T, pid, want int) {
	t.Helper()
	deadline := time.Now().Add(testtarget.Timeout)
	for threadsOf(t, pid) != want && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if n := threadsOf(t, pid); n != want {
		t.Fatalf("process %d has %d threads, want %d", pid, n, want)
	}
}

// memfdsOf gives the files in memory that a process has open.
func memfdsOf(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, fd := range fds {
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && strings.Contains(to, "memfd:") {
			found = append(found, to)
		}
	}
	return found
}
