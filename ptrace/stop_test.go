package ptrace

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
)

const limit = testtarget.Timeout

// TestStopAll: every thread is stopped, whatever it was doing. After Resume all of them
// run, and nobody traces them.
func TestStopAll(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	for _, kind := range []string{"sleeps", "sleeps", "spins", "calls", "polls"} {
		begin(t, p, kind)
	}
	tids, err := proc.Tasks()
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(tids)
	for range 20 {
		traced(t, proc, func(tr *Tracer) {
			w, err := tr.StopAll(limit)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, th := range w.Threads {
				got = append(got, th.TID)
				if state, tracer := stateOf(t, proc, th.TID); state != 't' || tracer == 0 {
					t.Errorf("thread %d is in state %c, traced by %d", th.TID, state, tracer)
				}
				var now Regs
				if errno := getRegs(th.TID, &now); errno != 0 || now != th.Regs || !now.Is64Bit() || now.Rip == 0 {
					t.Errorf("thread %d has the registers %+v (%v), and they are given as %+v", th.TID, now, errno, th.Regs)
				}
			}
			if !slices.Equal(got, tids) {
				t.Errorf("stopped are %v, and there are %v", got, tids)
			}
			if pause := w.Resume(); pause <= 0 {
				t.Errorf("the pause was %v", pause)
			}
		})
	}
	p.Healthy(t)
	before := ask(t, p, "ticks")
	await(t, "it ticks", func() bool { return ask(t, p, "ticks") > before })
	if n := ask(t, p, "broken"); n != 0 {
		t.Errorf("%d system calls were broken", n)
	}
}

// TestStopOne: a process of one thread is stopped, whether that one runs or sleeps, and
// goes on.
func TestStopOne(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "usleep(100);", "usleep(100000);"} {
		t.Run(body, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Files: map[string]string{"one.c": `#include <stdio.h>
#include <unistd.h>
int main(void) {
	printf("READY %d\n", getpid());
	fflush(stdout);
	for (;;) { ` + body + ` }
}
`}}))
			proc, err := procfs.Open(p.PID())
			if err != nil {
				t.Fatal(err)
			}
			defer proc.Close()
			for round := range 100 {
				traced(t, proc, func(tr *Tracer) {
					w, err := tr.StopAll(limit)
					if err != nil {
						t.Fatal(err)
					}
					if state, _ := stateOf(t, proc, proc.PID()); len(w.Threads) != 1 || state != 't' || w.Threads[0].Regs.Rip == 0 {
						t.Errorf("round %d: %d threads, in state %c", round, len(w.Threads), state)
					}
					w.Resume()
				})
			}
			p.Healthy(t)
		})
	}
}

// TestRunLetsGo: whatever is seized or stopped when Run ends is let go, also when
// it ends by a panic.
func TestRunLetsGo(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	tid := begin(t, p, "spins")
	traced(t, proc, func(tr *Tracer) { // stopped
		seized(t, tr, tid)
	})
	p.Healthy(t)
	traced(t, proc, func(tr *Tracer) { // running
		if n, err := tr.SeizeAll(); err != nil || n != 3 {
			t.Fatalf("%d threads are seized, %v", n, err)
		}
		if n, err := tr.SeizeAll(); err != nil || n != 0 {
			t.Fatalf("%d threads are seized again, %v", n, err)
		}
	})
	p.Healthy(t)
	func() {
		defer func() {
			if recover() != "oh" {
				t.Error("the panic does not get through")
			}
		}()
		_ = Run(proc, func(tr *Tracer) error { seized(t, tr, tid); panic("oh") })
	}()
	p.Healthy(t)
	failed := errors.New("failed")
	if err := Run(proc, func(tr *Tracer) error { seized(t, tr, tid); return failed }); !errors.Is(err, failed) {
		t.Error(err)
	}
	p.Healthy(t)
	ask(t, p, "count")
}

// TestSeizeRefused: a thread that has ended, and one that another has.
func TestSeizeRefused(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	tid := begin(t, p, "ends")
	await(t, "the thread has ended", func() bool { _, err := proc.Status(tid); return err != nil })
	traced(t, proc, func(tr *Tracer) {
		if th, err := tr.Seize(tid); th != nil || !errors.Is(err, ErrGone) {
			t.Errorf("an ended thread gives %v, %v", th, err)
		}
		seized(t, tr, p.PID())
		other := make(chan error)
		go func() {
			other <- Run(proc, func(second *Tracer) error { _, err := second.Seize(p.PID()); return err })
		}()
		err := <-other
		var f *fault.Error
		if !errors.As(err, &f) || f.Code != "already-traced" || f.Kind != fault.NoAccess || !strings.Contains(f.Why, "traced by") || f.Hint == "" {
			t.Errorf("a traced thread gives %v", err)
		}
	})
	p.Healthy(t)
}

// TestKilledWhileStopped: the process is killed under the tracer's hands.
func TestKilledWhileStopped(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	traced(t, proc, func(tr *Tracer) {
		th := seized(t, tr, p.PID())
		if err := unix.Kill(p.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		await(t, "the thread is gone", func() bool { th.SetRegs(th.Regs); return errors.Is(th.Flush(), ErrGone) })
		if err := th.Detach(); !errors.Is(err, ErrGone) {
			t.Error(err)
		}
	})
	if status := p.Wait(limit); status.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", status)
	}
}

// TestGroupStopped: a process that job control has stopped stays so, and goes on
// when it is told to.
func TestGroupStopped(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	for _, kind := range []string{"sleeps", "spins"} {
		begin(t, p, kind)
	}
	tids, err := proc.Tasks()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(p.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := func() bool {
		for _, tid := range tids {
			if state, tracer := stateOf(t, proc, tid); state != 'T' || tracer != 0 {
				return false
			}
		}
		return true
	}
	await(t, "all threads are stopped", stopped)
	for range 10 {
		traced(t, proc, func(tr *Tracer) {
			w, err := tr.StopAll(limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, th := range w.Threads {
				if !th.GroupStopped() || th.PendingSignal() != 0 {
					t.Errorf("thread %d: stopped by job control: %v, signal %d", th.TID, th.GroupStopped(), th.PendingSignal())
				}
			}
			w.Resume()
		})
		await(t, "all threads are stopped again", stopped)
	}
	for range 20 { // and nothing is under way that would wake it
		time.Sleep(time.Millisecond)
		if !stopped() {
			t.Fatal("it does not stay stopped")
		}
	}
	if err := unix.Kill(p.PID(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	before := ask(t, p, "ticks")
	await(t, "it ticks", func() bool { return ask(t, p, "ticks") > before })
	p.Healthy(t)
}

// TestTend: a thread that waits for its vfork child does not stop. The others are
// let go meanwhile, and it is when it has stopped.
func TestTend(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	tid := begin(t, p, "vforks")
	await(t, "the thread waits for its child", func() bool { state, _ := stateOf(t, proc, tid); return state == 'D' })
	again := func(tr *Tracer) {
		t.Helper()
		w, err := tr.StopAll(30 * time.Millisecond)
		if w != nil || !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "thread ") {
			t.Fatalf("it gives %v, %v; want ErrTimeout and a thread", w, err)
		}
		await(t, "the others are let go", func() bool {
			tr.Tend() // of those that a busy machine has not stopped in time
			tids, err := proc.Tasks()
			if err != nil {
				t.Fatal(err)
			}
			return !slices.ContainsFunc(tids, func(other int) bool {
				_, tracer := stateOf(t, proc, other)
				return other != tid && tracer != 0
			})
		})
		before := ask(t, p, "ticks")
		await(t, "it ticks", func() bool { return ask(t, p, "ticks") > before })
		tr.Tend()
		if state, tracer := stateOf(t, proc, tid); state != 'D' || tracer == 0 {
			t.Fatalf("the thread is in state %c, traced by %d", state, tracer)
		}
	}
	traced(t, proc, func(tr *Tracer) {
		again(tr)
		again(tr) // what is seized and was asked to stop is taken up again
		ask(t, p, "release")
		await(t, "the thread has stopped", func() bool { state, _ := stateOf(t, proc, tid); return state == 't' })
		tr.Tend()
		p.Line("^returned$", limit)
		p.Healthy(t)
	})

	tid = begin(t, p, "vforks")
	await(t, "the thread waits for its child", func() bool { state, _ := stateOf(t, proc, tid); return state == 'D' })
	traced(t, proc, func(tr *Tracer) {
		again(tr)
		ask(t, p, "release")
		stopsWith(t, tr, tid)
	})
	p.Line("^returned$", limit)
	p.Healthy(t)
}

// stopsWith stops all threads, a given one among them, and lets them go.
func stopsWith(t *testing.T, tr *Tracer, tid int) {
	t.Helper()
	w, err := tr.StopAll(limit)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(w.Threads, func(th *Thread) bool { return th.TID == tid }) {
		t.Errorf("thread %d is not among those stopped", tid)
	}
	w.Resume()
}

// TestAwait: a thread that stops late is kept until the next pause, and all others run until
// then.
func TestAwait(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	tid := begin(t, p, "vforks")
	await(t, "the thread waits for its child", func() bool { state, _ := stateOf(t, proc, tid); return state == 'D' })
	never := func() bool { return false }
	traced(t, proc, func(tr *Tracer) {
		if w, err := tr.StopAll(30 * time.Millisecond); w != nil || !errors.Is(err, ErrTimeout) {
			t.Fatalf("it gives %v, %v; want ErrTimeout", w, err)
		}
		if tr.Await(20*time.Millisecond, never) {
			t.Fatal("a thread that waits for its child is said to have stopped")
		}
		asked := 0
		if tr.Await(limit, func() bool { asked++; return asked == 3 }) || asked != 3 {
			t.Fatalf("it does not give up; asked %d times", asked)
		}
		before := ask(t, p, "ticks")
		await(t, "it ticks", func() bool { return ask(t, p, "ticks") > before })
		ask(t, p, "release")
		if !tr.Await(limit, never) {
			t.Fatal("the thread has not stopped, and its child has ended")
		}
		if state, tracer := stateOf(t, proc, tid); state != 't' || tracer == 0 {
			t.Fatalf("the thread is in state %c, traced by %d", state, tracer)
		}
		before = ask(t, p, "ticks")
		await(t, "it ticks", func() bool { return ask(t, p, "ticks") > before })
		stopsWith(t, tr, tid)
	})
	p.Line("^returned$", limit)
	p.Healthy(t)
}

// TestRegisters: what is set reaches the thread, and stays there.
func TestRegisters(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	tid := begin(t, p, "spins")
	const mark = 0x5a5a_1234_5678_9abc
	traced(t, proc, func(tr *Tracer) {
		th := spinning(t, tr, tid)
		r := th.Regs
		r.R15 = mark
		th.SetRegs(r)
		if err := th.Cont(); err != nil {
			t.Fatal(err)
		}
		if err := tr.Stop(th, limit); err != nil {
			t.Fatal(err)
		}
		if th.Regs.R15 != mark || th.Regs.Rsp != r.Rsp || th.Regs.InSyscall() {
			t.Errorf("r15 is %#x, want %#x", th.Regs.R15, uint64(mark))
		}
	})
	traced(t, proc, func(tr *Tracer) {
		if th := seized(t, tr, tid); th.Regs.R15 != mark {
			t.Errorf("r15 is %#x after all was let go, want %#x", th.Regs.R15, uint64(mark))
		}
	})
	p.Healthy(t)
}

// spinValue is what the thread that spins has in xmm0 and xmm15.
const spinValue = 0x0123456789abcdef

// spinning stops the thread that spins, in its loop.
func spinning(t *testing.T, tr *Tracer, tid int) *Thread {
	t.Helper()
	th := seized(t, tr, tid)
	await(t, "the thread spins", func() bool {
		if th.Regs.Rax == spinValue {
			return true
		}
		if err := th.Cont(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		if err := tr.Stop(th, limit); err != nil {
			t.Fatal(err)
		}
		return false
	})
	return th
}

// TestXState: the vector registers, where the processor's format has them (Intel
// SDM, volume 1, 13.4.1: the control word of the x87 at 0, xmm0 at 160, 16 bytes
// each).
func TestXState(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	tid := begin(t, p, "spins")
	traced(t, proc, func(tr *Tracer) {
		th := spinning(t, tr, tid)
		b, err := th.XState(make([]byte, 16<<10))
		if err != nil || len(b) < 576 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		for _, at := range []int{160, 160 + 15*16} {
			if v := binary.LittleEndian.Uint64(b[at:]); v != spinValue {
				t.Errorf("at %d is %#x, want %#x", at, v, uint64(spinValue))
			}
		}
		if v := binary.LittleEndian.Uint16(b); v != 0x37f {
			t.Errorf("the control word is %#x", v)
		}
		if err := th.Detach(); err != nil {
			t.Fatal(err)
		}
		if _, err := th.XState(make([]byte, 16<<10)); err == nil {
			t.Error("a thread that runs has registers to be read")
		}
	})
	p.Healthy(t)
}
