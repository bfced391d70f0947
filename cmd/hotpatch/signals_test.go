package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// A thread that will return into the bytes to be overwritten keeps apply
// waiting; a signal ends the wait, and nothing has changed.
func TestSignals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		signals []syscall.Signal
	}{
		{"SIGINT", []syscall.Signal{syscall.SIGINT}},
		{"SIGTERM", []syscall.Signal{syscall.SIGTERM}},
		{"SIGHUP", []syscall.Signal{syscall.SIGHUP, syscall.SIGHUP}}, // a terminal that goes away may send two
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p, pid, patch := calc(t, "call_at_3")
			p.Ask("gate close", "^gate closed")
			p.Ask("thread calls_at_3 1", "^waiting 1$")
			before := testtarget.TextSnapshot(t, p.PID())

			var stdout, stderr bytes.Buffer
			// Under nohup(1) SIGHUP is ignored, and hotpatch leaves it so.
			cmd := exec.Command("env", "--default-signal=HUP", testtarget.Hotpatch(t), "apply", "--pid", pid, "--timeout", "1h", patch)
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill() }() // it has ended, unless the test fails
			awaitSignals(t, cmd.Process.Pid)
			// Job control does not stop it.
			for _, s := range append([]syscall.Signal{syscall.SIGTSTP, syscall.SIGTTOU}, test.signals...) {
				if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Fatal(err)
				}
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			select {
			case <-ended:
			case <-time.After(testtarget.Timeout):
				_ = cmd.Process.Signal(syscall.SIGQUIT) // says where it is
				<-ended
				t.Fatalf("it goes on\n%s", stderr.String())
			}
			if cmd.ProcessState.ExitCode() != 1 || stdout.Len() > 0 || !strings.Contains(stderr.String(), "hotpatch: "+test.name+": taking back") || !strings.Contains(stderr.String(), "[interrupted]") {
				t.Errorf("%v\n%s%s", cmd.ProcessState, stdout.String(), stderr.String())
			}

			r := testtarget.Run(t, "list", "--pid", pid)
			if r.Exit != 0 || strings.Contains(r.Stdout, " active ") || strings.Contains(r.Stdout, "warning") {
				t.Errorf("%v", r)
			}
			for _, d := range testtarget.Diff(before, testtarget.TextSnapshot(t, p.PID())) {
				if !strings.HasPrefix(d, "added ") { // what was mapped for the patch may stay
					t.Error(d)
				}
			}
			p.Send("gate open")
			p.Line(`^calls_at_3\(1\) = 2$`, testtarget.Timeout)
			p.Healthy(t)
		})
	}
}

// awaitSignals waits until a hotpatch is ready for signals: it ignores those of
// job control from then on.
func awaitSignals(t *testing.T, pid int) {
	t.Helper()
	const ignored = 1<<(syscall.SIGTSTP-1) | 1<<(syscall.SIGTTIN-1) | 1<<(syscall.SIGTTOU-1)
	for deadline := time.Now().Add(testtarget.Timeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			if mask, ok := strings.CutPrefix(line, "SigIgn:"); ok {
				if m, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64); err == nil && m&ignored == ignored {
					return
				}
			}
		}
	}
	t.Fatal("it never ignores the signals of job control")
}

// What nohup made hotpatch ignore stays ignored: apply goes on until its timeout.
func TestNohup(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "nohup")
	p, pid, patch := calc(t, "call_at_3")
	p.Ask("gate close", "^gate closed")
	p.Ask("thread calls_at_3 1", "^waiting 1$")
	var stderr bytes.Buffer
	cmd := exec.Command("nohup", testtarget.Hotpatch(t), "apply", "--pid", pid, "--timeout", "1s", patch)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }() // it has ended, unless the test fails
	awaitSignals(t, cmd.Process.Pid)
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if cmd.ProcessState.ExitCode() != 3 || strings.Contains(stderr.String(), "SIGHUP") || !strings.Contains(stderr.String(), "[threads-busy]") {
		t.Errorf("%v\n%s", cmd.ProcessState, stderr.String())
	}
}
