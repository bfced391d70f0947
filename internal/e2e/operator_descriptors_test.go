package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hotpatch/internal/testtarget"
)

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
