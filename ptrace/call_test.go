package ptrace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
)

// sigRTMin is SIGRTMIN of glibc, which keeps the first two for itself.
const sigRTMin = unix.Signal(34)

// TestSignalsAreGivenBack: a thousand signals are sent to a process that is seized,
// stopped and let go all the time. Each is met by its handler exactly once.
func TestSignalsAreGivenBack(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	tids := []int{p.PID(), begin(t, p, "sleeps"), begin(t, p, "spins"), begin(t, p, "calls")}
	const all, each = 1000, 20
	sent, met := 0, 0
	traced(t, proc, func(tr *Tracer) {
		for round := 0; sent < all; round++ {
			if _, err := tr.SeizeAll(); err != nil {
				t.Fatal(err)
			}
			for i := range each {
				var err error
				if i%2 == 0 {
					err = unix.Kill(p.PID(), sigRTMin)
				} else {
					err = unix.Tgkill(p.PID(), tids[i%len(tids)], sigRTMin)
				}
				if err != nil {
					t.Fatal(err)
				}
				sent++
			}
			if round == 0 {
				await(t, "a thread has stopped for its signal", func() bool { state, _ := stateOf(t, proc, tids[1]); return state == 't' })
			}
			w, err := tr.StopAll(limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, th := range w.Threads {
				if s := th.PendingSignal(); s == int(sigRTMin) {
					met++
				} else if s != 0 {
					t.Errorf("thread %d is about to receive signal %d", th.TID, s)
				}
				if round%2 == 1 {
					if err := th.Cont(); err != nil {
						t.Fatal(err)
					}
					if th.PendingSignal() != 0 {
						t.Error("the signal is given twice")
					}
				}
			}
			w.Resume()
		}
	})
	if met == 0 {
		t.Error("no signal was met on the way: the test has no case")
	}
	await(t, "all signals have arrived", func() bool { return ask(t, p, "count") >= sent })
	for range 10 { // and no more
		if n := ask(t, p, "count"); n != sent {
			t.Fatalf("%d signals have arrived, and %d were sent (%d were met on the way)", n, sent, met)
		}
		time.Sleep(time.Millisecond)
	}
	for _, tid := range tids {
		if st, err := proc.Status(tid); err != nil || st.SigPnd|st.ShdPnd != 0 {
			t.Errorf("thread %d: pending %#x, %#x, %v", tid, st.SigPnd, st.ShdPnd, err)
		}
	}
	p.Healthy(t)
}

// interruptedCalls are system calls that return EINTR at any stop, unless that is
// repaired.
var interruptedCalls = []struct {
	kind string
	call int
}{
	{"polls", unix.SYS_EPOLL_WAIT},
	{"polls_masked", unix.SYS_EPOLL_PWAIT},
	{"waits", unix.SYS_RT_SIGTIMEDWAIT},
	{"receives", unix.SYS_RECVFROM},
}

// TestNoInterruptIsSeen: a stop makes some system calls return EINTR. That is
// turned into a restart in the kernel's own registers at once, so that a tracer
// that is killed at the very next moment does no harm; and no program sees it.
func TestNoInterruptIsSeen(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	restart := int64(eRestartNoHand)
	for _, test := range interruptedCalls {
		tid := begin(t, p, test.kind)
		for range 10 {
			awaitCall(t, proc, tid, test.call)
			traced(t, proc, func(tr *Tracer) {
				th := seized(t, tr, tid)
				var now Regs
				if errno := getRegs(tid, &now); errno != 0 {
					t.Fatal(errno)
				}
				if int(now.OrigRax) != test.call || int64(now.Rax) != restart || now != th.Regs {
					t.Errorf("%s: in system call %d the kernel has %d in rax, want %d (given are %d and %d)", test.kind,
						now.OrigRax, int64(now.Rax), restart, th.Regs.OrigRax, int64(th.Regs.Rax))
				}
				if !now.RestartsUnlessHandled() {
					t.Errorf("%s: it does not restart: %+v", test.kind, now)
				}
			})
		}
		awaitCall(t, proc, tid, test.call)
	}
	if n := ask(t, p, "broken"); n != 0 {
		t.Errorf("%d waits were broken", n)
	}
	p.Healthy(t)
}

// TestInterruptBySignal: if a handler really runs, the system call returns EINTR
// as it would have without a tracer.
func TestInterruptBySignal(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	for _, test := range interruptedCalls {
		tid := begin(t, p, test.kind)
		awaitCall(t, proc, tid, test.call)
		count, broken := ask(t, p, "count"), ask(t, p, "broken")
		traced(t, proc, func(tr *Tracer) {
			th := seized(t, tr, tid)
			if err := unix.Tgkill(p.PID(), tid, sigRTMin); err != nil {
				t.Fatal(err)
			}
			if err := th.Cont(); err != nil {
				t.Fatal(err)
			}
		})
		await(t, test.kind+": the handler has run", func() bool { return ask(t, p, "count") == count+1 })
		await(t, test.kind+": the wait was broken", func() bool { return ask(t, p, "broken") == broken+1 })
		awaitCall(t, proc, tid, test.call)
	}
	p.Healthy(t)
}

// TestNextSyscall: a thread is followed from the entry of a system call to its
// exit and to the next entry.
func TestNextSyscall(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	busy, idle := begin(t, p, "calls"), begin(t, p, "sleeps")
	awaitCall(t, proc, idle, unix.SYS_PAUSE)
	none := -int64(unix.ENOSYS) // what rax holds at the entry
	traced(t, proc, func(tr *Tracer) {
		th := seized(t, tr, busy)
		for i := range 40 {
			if err := th.NextSyscall(limit); err != nil {
				t.Fatal(err)
			}
			want := none
			if i%2 == 1 {
				want = int64(os.Getpid())
			}
			if th.Regs.OrigRax != unix.SYS_GETPPID && i > 1 || int64(th.Regs.Rax) != want && i > 1 {
				t.Fatalf("stop %d: system call %d with %d in rax, want %d with %d", i, th.Regs.OrigRax, int64(th.Regs.Rax), unix.SYS_GETPPID, want)
			}
		}

		th = seized(t, tr, idle)
		if err := th.NextSyscall(limit); err != nil || th.Regs.OrigRax != unix.SYS_PAUSE || int64(th.Regs.Rax) != none {
			t.Fatalf("%v: the thread is in system call %d with %d in rax, want the entry of %d", err, th.Regs.OrigRax, int64(th.Regs.Rax), unix.SYS_PAUSE)
		}
		for range 2 { // it does not leave, and waiting again is fine
			if err := th.NextSyscall(20 * time.Millisecond); !errors.Is(err, ErrTimeout) {
				t.Fatalf("it gives %v, want ErrTimeout", err)
			}
			if state, _ := stateOf(t, proc, idle); state != 'S' {
				t.Errorf("the thread is in state %c", state)
			}
		}
		if err := unix.Tgkill(p.PID(), idle, sigRTMin); err != nil {
			t.Fatal(err)
		}
		if err := th.NextSyscall(limit); err != nil || int64(th.Regs.Rax) != eRestartNoHand {
			t.Fatalf("%v: at its exit, %d is in rax, want %d", err, int64(th.Regs.Rax), eRestartNoHand)
		}
		if err := th.NextSyscall(limit); err != nil || th.PendingSignal() != int(sigRTMin) {
			t.Fatalf("%v: signal %d, want %d", err, th.PendingSignal(), sigRTMin)
		}
		if err := th.NextSyscall(limit); err != nil || th.Regs.OrigRax != unix.SYS_RT_SIGRETURN {
			t.Fatalf("%v: the handler makes system call %d, want %d", err, th.Regs.OrigRax, unix.SYS_RT_SIGRETURN)
		}
	})
	awaitCall(t, proc, idle, unix.SYS_PAUSE)
	if n := ask(t, p, "count"); n != 1 {
		t.Errorf("the handler has run %d times, want once", n)
	}
	p.Healthy(t)
}

// TestPoke: memory that nobody may write is written through a thread, any number
// of bytes anywhere.
func TestPoke(t *testing.T) {
	t.Parallel()
	p, proc := victim(t)
	at, value := constantOf(t, p)
	if value != 0x1122334455667788 {
		t.Fatalf("the constant is %#x", value)
	}
	maps, err := proc.Maps()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range maps {
		if m.Contains(at) && m.Perm&procfs.Write != 0 {
			t.Fatalf("the constant is in %v: the test has no case", m)
		}
	}
	traced(t, proc, func(tr *Tracer) {
		if err := tr.Poke([]byte{1, 2, 3, 4, 5}, at+1, limit); err != nil {
			t.Fatal(err)
		}
		p.Healthy(t) // it has let go
		if _, now := constantOf(t, p); now != 0x1122050403020188 {
			t.Errorf("the constant is %#x", now)
		}
		th := seized(t, tr, p.PID())
		if err := th.Poke(binary.LittleEndian.AppendUint64(nil, 0x42), at); err != nil {
			t.Fatal(err)
		}
		if b := read(t, p, at, 8); binary.LittleEndian.Uint64(b) != 0x42 {
			t.Errorf("there are % x", b)
		}
		if err := th.Poke([]byte{1}, 8); err == nil {
			t.Error("nothing is mapped at 8, and it was written")
		}
	})
	if _, now := constantOf(t, p); now != 0x42 {
		t.Errorf("the constant is %#x", now)
	}
	p.Healthy(t)
}

// constantOf gives the address and the value of the victim's constant.
func constantOf(t *testing.T, p *testtarget.Process) (at, value uint64) {
	t.Helper()
	line := p.Ask("constant", "^constant ")
	if _, err := fmt.Sscanf(strings.TrimPrefix(line, "constant 0x"), "%x %x", &at, &value); err != nil {
		t.Fatal(err)
	}
	return at, value
}
