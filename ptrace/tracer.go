package ptrace

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
)

// ErrGone says that a thread or process has ended.
var ErrGone = errors.New("thread has ended")

// ErrTimeout says that a thread did not stop in time, as one in
// uninterruptible sleep does.
var ErrTimeout = errors.New("thread did not stop in time")

// Tracer holds the threads of one process that are seized. It belongs to the
// function that Run calls.
type Tracer struct {
	proc    *procfs.Proc
	threads map[int]*Thread

	interruptAt time.Time // set by the alarm: waits give up when it is not zero
	alarms      chan os.Signal
}

// Run calls f with a Tracer for the process on one locked OS thread, and
// detaches every thread that is still seized when f returns or panics.
func Run(p *procfs.Proc, f func(*Tracer) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	warmUp()
	t := &Tracer{proc: p, threads: make(map[int]*Thread), alarms: make(chan os.Signal, 1)}
	// The signal would be caught without this; but without it, a thread that is borrowed was
	// seen to be away three times as long.
	signal.Notify(t.alarms, alarmSignal)
	defer signal.Stop(t.alarms)
	if errno := interruptible(alarmSignal); errno != 0 {
		return fmt.Errorf("prepare the alarm signal: %w", errno)
	}
	if errno := quietStops(); errno != 0 {
		return fmt.Errorf("keep stops quiet: %w", errno)
	}
	defer t.DetachAll()
	return f(t)
}

// Proc gives the process.
func (t *Tracer) Proc() *procfs.Proc { return t.proc }

// Thread is one seized thread.
type Thread struct {
	TID int
	// Regs are the registers at the stop, valid while the thread is stopped.
	// Changes reach the thread with SetRegs.
	Regs Regs

	tracer  *Tracer
	stopped bool
	asked   bool // interrupted, and the stop not yet seen
	group   bool // in a group-stop (SIGSTOP and the like)
	signal  int  // a signal to be given back at the resume
	gone    bool
	dirty   bool // Regs differ from the thread's
}

// Seize attaches to a thread without stopping it. Errors: ErrGone; a
// *fault.Error of kind NoAccess with the cause of a refusal.
func (t *Tracer) Seize(tid int) (*Thread, error) {
	if th := t.threads[tid]; th != nil {
		return th, nil
	}
	switch errno := request(unix.PTRACE_SEIZE, tid, 0, 0); errno {
	case 0:
	case unix.ESRCH:
		return nil, ErrGone
	default:
		return nil, t.explain(tid, errno)
	}
	th := &Thread{TID: tid, tracer: t}
	t.threads[tid] = th
	return th, nil
}

// explain finds out why a thread could not be seized. The kernel says EPERM to
// a traced thread, a zombie, and a process that is not ours to trace.
func (t *Tracer) explain(tid int, errno syscall.Errno) error {
	st, err := t.proc.Status(tid)
	if err != nil || st.State == 'Z' || st.State == 'X' {
		return ErrGone
	}
	if st.TracerPid != 0 {
		return Traced(t.proc.PID(), st.TracerPid)
	}
	return &fault.Error{
		Kind: fault.NoAccess, Code: "no-permission",
		What: fmt.Sprintf("cannot trace process %d", t.proc.PID()), Where: fmt.Sprintf("thread %d", tid),
		Why: fmt.Sprintf("the kernel says %q", errno.Error()), Err: nil,
		Hint: permissionHint(),
	}
}

// Traced is the refusal for a process that another program is tracing.
func Traced(pid, tracer int) *fault.Error {
	who := fmt.Sprintf("thread %d", tracer)
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", tracer)); err == nil && len(comm) > 1 {
		who = fmt.Sprintf("%q (thread %d)", string(comm[:len(comm)-1]), tracer)
	}
	return &fault.Error{
		Kind: fault.NoAccess, Code: "already-traced",
		What: fmt.Sprintf("cannot trace process %d", pid),
		Why:  "it is already traced by " + who,
		Hint: "a process can have one tracer only; end the debugger or strace first",
	}
}

func permissionHint() string {
	hint := "run as root, or with CAP_SYS_PTRACE"
	if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && len(scope) > 0 && scope[0] != '0' {
		hint += fmt.Sprintf("; kernel.yama.ptrace_scope is %c", scope[0])
	}
	return hint
}

// SeizeAll attaches to the threads of the process that are not seized yet,
// which keep running, and gives their number. Threads may begin while it looks:
// it looks again while it finds any, a bounded number of times.
func (t *Tracer) SeizeAll() (added int, err error) {
	for pass := 0; pass < 4; pass++ {
		tids, err := t.proc.Tasks()
		if err != nil {
			return added, err
		}
		found := false
		for _, tid := range tids {
			if t.threads[tid] != nil {
				continue
			}
			switch _, err := t.Seize(tid); {
			case err == nil:
				found = true
				added++
			case !errors.Is(err, ErrGone):
				return added, err
			}
		}
		if !found {
			break
		}
	}
	return added, nil
}

// Interrupt asks a seized thread to stop. Wait sees the stop.
func (th *Thread) Interrupt() error {
	if th.stopped || th.asked {
		return nil
	}
	switch errno := request(unix.PTRACE_INTERRUPT, th.TID, 0, 0); errno {
	case 0:
		th.asked = true
		return nil
	case unix.ESRCH:
		th.end()
		return ErrGone
	default:
		return fmt.Errorf("interrupt thread %d: %w", th.TID, errno)
	}
}

func (th *Thread) end() {
	th.gone, th.stopped = true, false
	delete(th.tracer.threads, th.TID)
}

// Stop interrupts a seized thread and waits until it has stopped, limit at most.
// Errors: ErrGone, ErrTimeout.
func (t *Tracer) Stop(th *Thread, limit time.Duration) error {
	stop, err := t.alarm(limit)
	if err != nil {
		return err
	}
	defer stop()
	if err := th.Interrupt(); err != nil {
		return err
	}
	return th.Wait()
}

// Wait blocks until the thread has stopped, reads its registers, and repairs
// an EINTR that only the stop has caused. Any stop will do, and a signal met on the way is kept for the
// resume. Errors: ErrGone, ErrTimeout (see StopAll).
func (th *Thread) Wait() error {
	if th.stopped {
		return nil
	}
	var status int32
	for {
		got, errno := wait(th.TID, &status, true)
		switch {
		case errno == unix.EINTR:
			if !th.tracer.interruptAt.IsZero() && !time.Now().Before(th.tracer.interruptAt) {
				return ErrTimeout
			}
			continue
		case errno == unix.ECHILD || errno == unix.ESRCH:
			th.end()
			return ErrGone
		case errno != 0:
			return fmt.Errorf("wait for thread %d: %w", th.TID, errno)
		case got != th.TID:
			continue
		}
		ws := unix.WaitStatus(status)
		if ws.Exited() || ws.Signaled() {
			th.end()
			return ErrGone
		}
		if ws.Stopped() {
			return th.stop(ws)
		}
	}
}

// poll reports whether a thread that was asked to stop has done so by now.
func (th *Thread) poll() bool {
	if th.stopped || !th.asked {
		return false
	}
	var status int32
	got, errno := wait(th.TID, &status, false)
	switch ws := unix.WaitStatus(status); {
	case errno == unix.ECHILD || errno == unix.ESRCH:
		th.end()
	case got == th.TID && ws.Stopped():
		return th.stop(ws) == nil
	case got == th.TID:
		th.end()
	}
	return false
}

// stop classifies a ptrace stop. See ptrace(2), "Stopped states".
func (th *Thread) stop(ws unix.WaitStatus) error {
	event, sig := int(ws)>>16, int(ws.StopSignal())
	th.stopped, th.asked, th.group = true, false, false
	switch {
	case event == unix.PTRACE_EVENT_STOP && sig == int(unix.SIGTRAP):
		// the stop that was asked for
	case event == unix.PTRACE_EVENT_STOP:
		th.group = true
	case sig == int(unix.SIGTRAP)|sysGood:
		// At the entry or exit of a system call nothing is decided yet, and
		// nothing may be repaired: a changed result would reach the program.
		if errno := getRegs(th.TID, &th.Regs); errno != 0 {
			th.end()
			return ErrGone
		}
		return nil
	case event == 0:
		th.signal = sig // signal-delivery-stop: the program's own
	}
	if errno := getRegs(th.TID, &th.Regs); errno != 0 {
		th.end()
		return ErrGone
	}
	// At once, in case this process is killed while the thread is stopped.
	if th.dirty = th.Regs.hideInterrupt(); th.dirty {
		return th.Flush()
	}
	return nil
}

// GroupStopped reports whether the thread was stopped by job control.
func (th *Thread) GroupStopped() bool { return th.group }

// PendingSignal gives the signal that will be delivered when the thread is
// resumed, or 0.
func (th *Thread) PendingSignal() int { return th.signal }

// SetRegs marks the registers as changed: they reach the thread before it is
// resumed. Precondition: stopped.
func (th *Thread) SetRegs(r Regs) { th.Regs, th.dirty = r, true }

// Flush writes changed registers to the thread now. Precondition: stopped.
func (th *Thread) Flush() error {
	if !th.dirty {
		return nil
	}
	if errno := setRegs(th.TID, &th.Regs); errno != 0 {
		if errno == unix.ESRCH {
			th.end()
			return ErrGone
		}
		return fmt.Errorf("set registers of thread %d: %w", th.TID, errno)
	}
	th.dirty = false
	return nil
}

// Detach lets the thread go, with the signal that it was about to receive. A
// thread in a group-stop stays stopped. A thread that is not stopped is stopped
// first; if that takes more than a second (uninterruptible sleep) the error is
// ErrTimeout and the thread stays seized until this process ends.
func (th *Thread) Detach() error {
	if th.gone {
		return ErrGone
	}
	if !th.stopped {
		if err := th.tracer.Stop(th, time.Second); err != nil {
			return err
		}
	}
	if err := th.Flush(); err != nil {
		return err
	}
	errno := request(unix.PTRACE_DETACH, th.TID, 0, uintptr(th.signal))
	th.end()
	if errno != 0 && errno != unix.ESRCH {
		return fmt.Errorf("detach from thread %d: %w", th.TID, errno)
	}
	return nil
}

// Cont lets a stopped thread run on, still seized, with the signal that it was
// about to receive.
func (th *Thread) Cont() error {
	if err := th.Flush(); err != nil {
		return err
	}
	errno := request(unix.PTRACE_CONT, th.TID, 0, uintptr(th.signal))
	th.stopped, th.signal = false, 0
	switch errno {
	case 0:
		return nil
	case unix.ESRCH:
		th.end()
		return ErrGone
	}
	return fmt.Errorf("continue thread %d: %w", th.TID, errno)
}

// sysGood is set in the signal of a stop at a system call, if
// PTRACE_O_TRACESYSGOOD is: no other stop looks so.
const sysGood = 0x80

// NextSyscall lets a stopped thread run until it next enters or leaves a system
// call, or stops for a signal, which it gets with the next resume. No trap is used: if this process ends, the thread
// runs on. Errors: ErrGone; ErrTimeout after limit: then the thread runs.
func (th *Thread) NextSyscall(limit time.Duration) error {
	if th.stopped {
		if err := th.Flush(); err != nil {
			return err
		}
		if errno := request(unix.PTRACE_SETOPTIONS, th.TID, 0, unix.PTRACE_O_TRACESYSGOOD); errno != 0 {
			return fmt.Errorf("trace the system calls of thread %d: %w", th.TID, errno)
		}
		errno := request(unix.PTRACE_SYSCALL, th.TID, 0, uintptr(th.signal))
		if errno == unix.ESRCH {
			th.end()
			return ErrGone
		}
		if errno != 0 {
			return fmt.Errorf("resume thread %d: %w", th.TID, errno)
		}
		th.stopped, th.signal = false, 0
	}
	stop, err := th.tracer.alarm(limit)
	if err != nil {
		return err
	}
	defer stop()
	return th.Wait()
}

// Poke writes memory through the thread word by word (PTRACE_POKEDATA), the way
// that is left where the kernel forbids forced writes through /proc/PID/mem.
// Precondition: stopped.
func (th *Thread) Poke(b []byte, addr uint64) error {
	n, err := unix.PtracePokeData(th.TID, uintptr(addr), b)
	if err != nil {
		return fmt.Errorf("write %d bytes at %#x: %w", len(b), addr, err)
	}
	if n != len(b) {
		return fmt.Errorf("write %d bytes at %#x: only %d written", len(b), addr, n)
	}
	return nil
}

// Poke writes memory of the process word by word through any of its threads, which
// is stopped for it. Errors: of stopping it, and of Thread.Poke.
func (t *Tracer) Poke(b []byte, addr uint64, limit time.Duration) error {
	tids, err := t.proc.Tasks()
	if err != nil {
		return err
	}
	err = ErrGone
	for _, tid := range tids {
		var th *Thread
		if th, err = t.Seize(tid); err != nil {
			continue
		}
		if err = t.Stop(th, limit); err == nil {
			err = th.Poke(b, addr)
		}
		if derr := th.Detach(); err == nil {
			return derr
		}
	}
	return err
}

const ptraceGetRseqConfiguration = 0x420f

// RseqArea gives the address of the thread's struct rseq, or 0 if it has none
// or the kernel cannot tell (before 5.13). Precondition: stopped.
func (th *Thread) RseqArea() uint64 {
	var c rseqConfiguration
	if errno := getRseq(th.TID, &c); errno != 0 {
		return 0
	}
	return c.pointer
}

// DetachAll lets every thread go that is still seized. One that was asked to stop
// and has not (uninterruptible sleep) is kept until it has: see Tend.
func (t *Tracer) DetachAll() {
	t.Tend()
	for _, th := range t.threads {
		if th.stopped || !th.asked {
			_ = th.Detach() // what cannot be detached now is by Tend, or when this process ends
		}
	}
}

// Tend lets those threads go that did not stop in time when they were asked to,
// and have stopped since. It does not wait. Whoever sleeps after ErrTimeout must
// call it now and then, or such a thread stays stopped.
func (t *Tracer) Tend() {
	for _, th := range t.threads {
		if th.poll() {
			_ = th.Detach()
		}
	}
}

// Await waits until the threads that did not stop in time when they were asked to have
// stopped, for limit at the most, and keeps them stopped for the next StopAll: all others run
// meanwhile, where they would be stopped for as long otherwise. It gives false, and lets all
// go that it can, if it gives up because of limit or stop, which is asked now and then.
func (t *Tracer) Await(limit time.Duration, stop func() bool) bool {
	defer t.Hurry()() // who is late has waited for a processor, and the rest is not to wait as long
	for end := time.Now().Add(limit); ; time.Sleep(500 * time.Microsecond) {
		late := false
		for _, th := range t.threads {
			th.poll()
			late = late || th.asked && !th.gone
		}
		switch {
		case !late:
			return true
		case time.Now().After(end) || stop():
			t.DetachAll()
			return false
		}
	}
}

// XState reads the thread's x87 and vector registers, in the form in which the
// processor saves them, into b, which should have 16 KiB, and gives what was
// read. Precondition: stopped.
func (th *Thread) XState(b []byte) ([]byte, error) {
	n, errno := getXState(th.TID, b)
	if errno != 0 {
		return nil, fmt.Errorf("read the vector registers of thread %d: %w", th.TID, errno)
	}
	return b[:n], nil
}
