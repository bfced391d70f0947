package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// readyProgram is the smallest target.
const readyProgram = `
#include <stdio.h>
#include <unistd.h>
long add_one(long x);
__attribute__((noinline)) long add_one(long x) { __asm__ volatile("" : "+r"(x)); return x + 1; }
int main(void) {
	char line[100];
	printf("READY %d\n", (int)getpid());
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		printf("add_one(1) = %ld\n", add_one(1));
		fflush(stdout);
	}
	return 0;
}
`

// ready builds the smallest target.
func ready(t *testing.T, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Files: map[string]string{"ready.c": readyProgram}, Flags: append([]string{"-O1"}, flags...)})
}

// TestRefusePID: numbers that are no process that could be patched.
func TestRefusePID(t *testing.T) {
	t.Parallel()
	patch := calcPatch(t, "add_one", 1000, "", 0)
	thread := calculator(t)
	thread.Ask("gate close", "^gate closed")
	thread.Ask("thread calc_wait 1", "^waiting 1")
	tests := []struct {
		name, pid string
		refusing
	}{
		{"zero", "0", refusing{2, "usage", []string{"positive number"}}},
		{"negative", "-7", refusing{2, "usage", []string{"positive number"}}},
		{"word", "redis", refusing{2, "usage", []string{"redis"}}},
		{"empty", "", refusing{2, "usage", []string{"positive number"}}},
		{"too big", "99999999999999999999", refusing{2, "usage", []string{"positive number"}}},
		// Linux gives no numbers above 2^22 (PID_MAX_LIMIT).
		{"nobody", "4194305", refusing{5, "no-such-process", []string{"4194305", "no such process"}}},
		{"thread", threadOf(t, thread.PID()), refusing{5, "not-a-process", []string{strconv.Itoa(thread.PID())}}},
	}
	before := testtarget.TextSnapshot(t, thread.PID())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.check(t, "apply", "--pid", tt.pid, patch)
			tt.check(t, "list", "--pid", tt.pid)
			tt.check(t, "revert", "--pid", tt.pid, "--all")
		})
	}
	identical(t, before, thread.PID())
	thread.Healthy(t)
}

// threadOf gives the number of a thread that is not the process's first.
func threadOf(t *testing.T, pid int) string {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if task.Name() != strconv.Itoa(pid) {
			return task.Name()
		}
	}
	t.Fatalf("process %d has no second thread", pid)
	return ""
}

// TestRefuseOwnProcess: hotpatch is asked to patch itself, by a shell that
// becomes it.
func TestRefuseOwnProcess(t *testing.T) {
	t.Parallel()
	patch := calcPatch(t, "add_one", 1000, "", 0)
	cmd := exec.Command("sh", "-c", `exec "$1" apply --pid $$ "$2"`, "sh", testtarget.Hotpatch(t), patch)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 || !strings.Contains(string(out), "[own-process]") {
		t.Errorf("it should exit with 5 and say [own-process]: %v\n%s", err, out)
	}
}

// TestRefuseKernelThread needs a kernel thread to be seen, as in the first
// process namespace.
func TestRefuseKernelThread(t *testing.T) {
	t.Parallel()
	comm, err := os.ReadFile("/proc/2/comm")
	if err != nil || string(comm) != "kthreadd\n" {
		t.Skipf("process 2 is not kthreadd here (%q, %v): this process namespace shows no kernel thread", comm, err)
	}
	patch := calcPatch(t, "add_one", 1000, "", 0)
	want := refusing{5, "kernel-thread", []string{"kthreadd", "thread of the kernel"}}
	want.check(t, "apply", "--pid", "2", patch)
	want.check(t, "verify", "--pid", "2")
}

func TestRefuseZombie(t *testing.T) {
	t.Parallel()
	patch := calcPatch(t, "add_one", 1000, "", 0)
	p := calculator(t)
	p.CloseInput() // and it ends; the harness reaps it at the end of the test
	if !p.Exited(testtarget.Timeout) {
		t.Fatal("the target did not end")
	}
	want := refusing{5, "zombie", []string{"has ended"}}
	want.check(t, "apply", "--pid", strconv.Itoa(p.PID()), patch)
	want.check(t, "revert", "--pid", strconv.Itoa(p.PID()), "--all")
}

// TestRefuseTraced: a debugger has the process. Looking is allowed.
func TestRefuseTraced(t *testing.T) {
	t.Parallel()
	patch := calcPatch(t, "add_one", 1000, "", 0)
	p := calculator(t)
	before := testtarget.TextSnapshot(t, p.PID())
	release := trace(t, p.PID())
	pid := strconv.Itoa(p.PID())
	want := refusing{5, "already-traced", []string{"already traced by"}}
	want.check(t, "apply", "--pid", pid, patch)
	want.check(t, "apply", "--dry-run", "--pid", pid, patch)
	want.check(t, "revert", "--pid", pid, "--all")
	must(t, "list", "--pid", pid)
	identical(t, before, p.PID())
	answers(t, p, "add_one", 1, 2)
	release()
	// The kernel detaches when the tracing thread has ended, a moment later.
	for deadline := time.Now().Add(testtarget.Timeout); statusField(t, p.PID(), "TracerPid") != "0"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the tracer does not let go")
		}
	}
	p.Healthy(t)
	apply(t, p.PID(), patch)
	answers(t, p, "add_one", 1, 1001)
}

func TestRefuseStatic(t *testing.T) {
	t.Parallel()
	testtarget.NeedFlags(t, "gcc", "-static")
	patch := calcPatch(t, "add_one", 1000, "", 0)
	for _, flags := range some([][]string{{"-static"}, {"-static-pie"}}, 0) {
		t.Run(flags[0], func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, ready(t, flags...))
			before := testtarget.TextSnapshot(t, p.PID())
			want := refusing{5, "static-executable", []string{"statically linked"}}
			want.check(t, "apply", "--pid", strconv.Itoa(p.PID()), patch)
			want.check(t, "apply", "--dry-run", "--pid", strconv.Itoa(p.PID()), patch)
			identical(t, before, p.PID())
			p.Healthy(t)
			p.Ask("?", `^add_one\(1\) = 2$`)
		})
	}
}

func TestRefuse32Bit(t *testing.T) {
	t.Parallel()
	testtarget.Need32Bit(t)
	patch := calcPatch(t, "add_one", 1000, "", 0)
	p := testtarget.Start(t, ready(t, "-m32"))
	before := testtarget.TextSnapshot(t, p.PID())
	want := refusing{5, "not-64-bit", []string{"ELFCLASS32"}}
	want.check(t, "apply", "--pid", strconv.Itoa(p.PID()), patch)
	want.check(t, "apply", "--dry-run", "--pid", strconv.Itoa(p.PID()), patch)
	identical(t, before, p.PID())
	p.Healthy(t)
	p.Ask("?", `^add_one\(1\) = 2$`)
}

// TestRefuseSeccomp: a system call filter, even one that allows everything.
func TestRefuseSeccomp(t *testing.T) {
	t.Parallel()
	patch := calcPatch(t, "add_one", 1000, "", 0)
	exe := testtarget.Build(t, testtarget.Spec{Flags: []string{"-O1"}, Files: map[string]string{
		"ready.c": strings.Replace(readyProgram, "int main(", "static int program(", 1) + `
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
int main(void) {
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog filter = {1, &allow};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
		perror("prctl");
		return 1;
	}
	return program();
}
`}})
	p := testtarget.Start(t, exe)
	before := testtarget.TextSnapshot(t, p.PID())
	want := refusing{5, "seccomp", []string{"filter", "SystemCallFilter"}}
	want.check(t, "apply", "--pid", strconv.Itoa(p.PID()), patch)
	want.check(t, "apply", "--dry-run", "--pid", strconv.Itoa(p.PID()), patch)
	must(t, "list", "--pid", strconv.Itoa(p.PID()))
	identical(t, before, p.PID())
	p.Healthy(t)
	p.Ask("?", `^add_one\(1\) = 2$`)
}

// TestRefuseOtherUser: a user without capabilities may not touch root's process,
// and may patch a process of its own.
func TestRefuseOtherUser(t *testing.T) {
	t.Parallel()
	testtarget.NeedRoot(t)
	dir := publicDir(t)
	hotpatch := copyTo(t, dir, testtarget.Hotpatch(t))
	patch := copyTo(t, dir, calcPatch(t, "add_one", 1000, "", 0))
	exe := copyTo(t, dir, testtarget.Build(t, testtarget.Spec{Sources: calcSources, Flags: []string{"-O2"}}))
	nobody := credential(t, "nobody")

	run := func(args ...string) (string, int) {
		t.Helper()
		cmd := exec.Command(hotpatch, args...)
		cmd.Env = []string{"NO_COLOR=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: nobody}
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	roots := testtarget.Start(t, exe)
	before := testtarget.TextSnapshot(t, roots.PID())
	for _, args := range [][]string{{"apply", patch}, {"apply", "--dry-run", patch}, {"revert", "--all"}, {"verify"}, {"list"}} {
		args = append(args, "--pid", strconv.Itoa(roots.PID()))
		out, exit := run(args...)
		if exit != 5 || !strings.Contains(out, "[permission-denied]") || !strings.Contains(out, "hint: ") {
			t.Errorf("%v should exit with 5, say [permission-denied], and give a hint; it exits with %d\n%s", args, exit, out)
		}
	}
	identical(t, before, roots.PID())
	roots.Healthy(t)
	answers(t, roots, "add_one", 1, 2)

	own := testtarget.Start(t, exe, testtarget.Attr(func(a *syscall.SysProcAttr) { a.Credential = nobody }))
	if out, exit := run("apply", "--pid", strconv.Itoa(own.PID()), patch); exit != 0 {
		t.Fatalf("nobody should be able to patch its own process; exit %d\n%s", exit, out)
	}
	answers(t, own, "add_one", 1, 1001)
	own.Healthy(t)
}

// publicDir makes a directory that every user can read.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hotpatch-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func copyTo(t *testing.T, dir, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, filepath.Base(path))
	if err := os.WriteFile(copied, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return copied
}

// credential gives a user's number and group, for a process to run with. It ends
// the test (see testtarget.Unavailable) if there is no such user.
func credential(t *testing.T, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		testtarget.Unavailable(t, "there is no user %s: %v", name, err)
	}
	uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(errUID, errGID); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}
