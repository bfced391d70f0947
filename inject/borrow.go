package inject

import (
	"bytes"
	"errors"
	"fmt"
	"sort"
	"time"

	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
	"hotpatch/ptrace"
)

// candidate is a thread that could be borrowed, with how much it would mind.
type candidate struct {
	tid   int
	inner int // its id in its own PID namespace
	cost  int
}

// leaving is a thread that was sent into [lo, hi) and must have left it before
// anything there is written again. It restores itself, so that takes microseconds.
type leaving struct {
	inner  int // its id in its own PID namespace; 0: any thread
	lo, hi uint64
}

func (v leaving) has(pc uint64) bool { return pc >= v.lo && pc < v.hi }

// System calls that end for good when a signal handler runs while their thread
// is away in the bootstrap, which cannot tell: pause and sigsuspend.
var losesWakeup = map[int64]bool{34: true, 130: true}

// candidates orders the threads by how well they can be borrowed. A thread that
// is in a system call which every stop breaks comes last: it is repaired, but
// its timeout starts anew.
func (l *Loader) candidates() ([]candidate, error) {
	tids, err := l.proc.Tasks()
	if err != nil {
		return nil, err
	}
	const enough = 64 // looking at every thread of thousands gains nothing
	var list []candidate
	for _, tid := range tids {
		if len(list) == enough {
			break
		}
		st, err := l.proc.Status(tid)
		if err != nil {
			continue
		}
		if st.Seccomp != 0 {
			continue // the agent would inherit a policy that may kill the process
		}
		c := candidate{tid: tid, inner: tid}
		if n := len(st.NSpid); n > 0 {
			c.inner = st.NSpid[n-1]
		}
		switch st.State {
		case 'R':
			c.cost = 1
		case 'S':
			sys, err := l.proc.Syscall(tid)
			switch {
			case err != nil:
				c.cost = 3
			case ptrace.BreaksAtStop(sys.Nr):
				c.cost = 4
			case losesWakeup[sys.Nr]:
				c.cost = 2
			}
		default: // stopped, traced, dead, in uninterruptible sleep
			continue
		}
		for _, v := range l.mustLeave {
			if v.inner == c.inner {
				c.cost = -1 // it has to be looked at anyway
			}
		}
		list = append(list, c)
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].cost < list[j].cost })
	if len(list) == 0 {
		return nil, &fault.Error{
			Kind: fault.Busy, Code: "no-thread",
			What: "cannot prepare the process", Why: "it has no thread that is running or sleeping",
			Hint: "a process that is stopped by a signal must be continued first (SIGCONT), and one in a frozen cgroup thawed",
		}
	}
	return list, nil
}

// borrow stops one thread at a place where it can be redirected, hands it to
// use, which sets its registers, and lets it go. If no thread can be had now it
// tries again until the deadline.
func (l *Loader) borrow(t *ptrace.Tracer, use func(th *ptrace.Thread, inner int) error) error {
	deadline := time.Now().Add(l.patience)
	var last error
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		list, err := l.candidates()
		if err != nil {
			return err
		}
		for _, c := range list {
			err := l.tryBorrow(t, c, use)
			if err == nil {
				return nil
			}
			var again *unsuitable
			if !errors.As(err, &again) && !errors.Is(err, ptrace.ErrGone) && !errors.Is(err, ptrace.ErrTimeout) {
				return err
			}
			last = err
			if time.Now().After(deadline) {
				break
			}
		}
		if time.Now().After(deadline) {
			return &fault.Error{
				Kind: fault.Busy, Code: "no-thread",
				What: "cannot prepare the process",
				Why:  fmt.Sprintf("no thread could be borrowed within %v", l.patience), Err: last,
				Hint: "try again; if the machine is very busy, with a higher priority for hotpatch (chrt --fifo 1)",
			}
		}
		time.Sleep(pause)
	}
}

// unsuitable says why a thread cannot be redirected at this moment.
type unsuitable struct {
	tid int
	why string
}

func (u *unsuitable) Error() string { return fmt.Sprintf("thread %d %s", u.tid, u.why) }

func (l *Loader) tryBorrow(t *ptrace.Tracer, c candidate, use func(*ptrace.Thread, int) error) (err error) {
	tid := c.tid
	th, err := t.Seize(tid)
	if err != nil {
		return err
	}
	defer t.Hurry()() // until it is let go
	defer func() {
		if derr := th.Detach(); err == nil && !errors.Is(derr, ptrace.ErrGone) {
			err = derr
		}
	}()
	if err := l.stopRunning(t, th); err != nil {
		return err
	}
	// A signal on its way is delivered first: let the thread take it and stop
	// it again.
	for i := 0; th.PendingSignal() != 0; i++ {
		if i == 16 {
			return &unsuitable{tid, "is flooded with signals"}
		}
		if err := th.Cont(); err != nil {
			return err
		}
		if err := l.stopRunning(t, th); err != nil {
			return err
		}
	}
	switch {
	case th.GroupStopped():
		return Stopped(l.proc.PID())
	case !th.Regs.Is64Bit():
		return &unsuitable{tid, "runs 32-bit code"}
	case l.inOurCode(th.Regs.Rip):
		return &unsuitable{tid, "is in hotpatch's own code"}
	case l.inRestartableSequence(th):
		return &unsuitable{tid, "is in a restartable sequence"}
	}
	return use(th, c.inner)
}

// stopRunning stops a thread. One that wants a processor stops as soon as it gets one: that
// takes a round of the scheduler, and costs the program nothing.
func (l *Loader) stopRunning(t *ptrace.Tracer, th *ptrace.Thread) error {
	for deadline := time.Now().Add(l.patience); ; {
		err := t.Stop(th, l.stopLimit)
		if !errors.Is(err, ptrace.ErrTimeout) || time.Now().After(deadline) {
			return err
		}
		if st, serr := l.proc.Status(th.TID); serr != nil || st.State != 'R' {
			return err
		}
	}
}

// awaitLeft waits until the threads that may be in code that is to be rewritten
// have left it. held is a thread that is stopped outside of it.
func (l *Loader) awaitLeft(t *ptrace.Tracer, held *ptrace.Thread) error {
	for len(l.mustLeave) > 0 {
		v := l.mustLeave[0]
		tids, err := l.proc.Tasks()
		if err != nil {
			return err
		}
		for _, tid := range tids {
			if tid == held.TID || v.inner != 0 && !l.isTID(tid, v.inner) {
				continue
			}
			if err := l.awaitOne(t, tid, v); err != nil {
				return err
			}
		}
		l.mustLeave = l.mustLeave[1:]
	}
	return nil
}

func (l *Loader) awaitOne(t *ptrace.Tracer, tid int, v leaving) error {
	return l.poll(fmt.Sprintf("thread %d did not leave hotpatch's code", tid), func() (bool, error) {
		th, err := t.Seize(tid)
		if errors.Is(err, ptrace.ErrGone) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if err := l.stopRunning(t, th); err != nil {
			return errors.Is(err, ptrace.ErrGone), ignoreGone(err)
		}
		left := !v.has(th.Regs.Rip)
		return left, ignoreGone(th.Detach())
	})
}

func ignoreGone(err error) error {
	if errors.Is(err, ptrace.ErrGone) {
		return nil
	}
	return err
}

// Stopped is the refusal for a process that is stopped by job control: nothing
// can run in it, and it must stay stopped.
func Stopped(pid int) *fault.Error {
	return &fault.Error{
		Kind: fault.Busy, Code: "target-stopped",
		What: fmt.Sprintf("cannot load a library into process %d", pid),
		Why:  "it is stopped by a signal (state T)",
		Hint: "continue it (kill -CONT) and try again; hotpatch never does that by itself",
	}
}

// inOurCode reports whether an address is in the bootstrap or the code page.
func (l *Loader) inOurCode(pc uint64) bool {
	if l.slack != 0 && pc >= l.slack && pc < l.slack+uint64(len(bootCode)) {
		return true
	}
	return l.region.Base != 0 && pc >= l.region.Base && pc < l.region.Base+rootOffset
}

// inRestartableSequence reports whether the thread is inside a restartable
// sequence (rseq(2)). The kernel would not abort the sequence on a redirected
// thread, which would later commit what it began.
func (l *Loader) inRestartableSequence(th *ptrace.Thread) bool {
	area := th.RseqArea()
	if area == 0 {
		return false
	}
	cs, err := read64(l.mem, area+8)
	if err != nil || cs == 0 {
		return false
	}
	var b [32]byte // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip
	if l.mem.ReadAt(b[:], cs) != nil {
		return true // unreadable: assume the worst
	}
	start, length := le.Uint64(b[8:]), le.Uint64(b[16:])
	return th.Regs.Rip-start < length
}

func read64(mem procfs.Memory, addr uint64) (uint64, error) {
	var b [8]byte
	err := mem.ReadAt(b[:], addr)
	return le.Uint64(b[:]), err
}

// bootstrap makes the region through one borrowed thread.
func (l *Loader) bootstrap(t *ptrace.Tracer) error {
	slack, stale, err := l.findSlack()
	if err != nil {
		return err
	}
	in := leaving{lo: slack, hi: slack + uint64(len(bootCode))}
	if stale { // a hotpatch was killed, and some thread may be there still
		l.mustLeave = append(l.mustLeave, in)
	}
	l.slack = slack
	// A region wants a place that nothing else grows into: well below the
	// C library, in a hole with room to spare. A program that makes threads all
	// the time may still be faster; the next place is farther away.
	deadline := time.Now().Add(l.patience)
	for away := uint64(128 << 20); ; away = min(8*away, 1<<40) {
		if l.space.Maps, err = l.proc.Maps(); err != nil {
			return err
		}
		base, ok := Hole(l.space.Maps, l.near()-away, 0, highestAddr, regionSize, regionAlign)
		if !ok {
			return &fault.Error{
				Kind: fault.NoAccess, Code: "no-room",
				What: "cannot prepare the process", Why: "its address space has no free megabyte",
			}
		}
		var tid int
		if tid, in.inner, err = l.redirectToBoot(t, base); err != nil {
			return err
		}
		l.mustLeave = append(l.mustLeave, in)
		if found, err := l.awaitRegion(base, tid); found || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return &fault.Error{
				Kind: fault.NoAccess, Code: "no-executable-memory",
				What: "cannot prepare the process",
				Why:  fmt.Sprintf("it could not map %d bytes of executable memory within %v", regionSize, l.patience),
				Hint: "a memory limit (RLIMIT_AS, a memory cgroup) or a policy against executable memory (SELinux execmem) may forbid it",
			}
		}
	}
}

// redirectToBoot writes the bootstrap and sends a thread there, to map the region
// at base. It gives the thread's id, and that in its own PID namespace.
func (l *Loader) redirectToBoot(t *ptrace.Tracer, base uint64) (tid, inner int, err error) {
	err = l.borrow(t, func(th *ptrace.Thread, id int) error {
		if err := l.awaitLeft(t, th); err != nil {
			return err
		}
		tid, inner = th.TID, id
		r := th.Regs
		stub := bytes.Clone(bootCode)
		for i, v := range []uint64{r.Rbx, r.Rcx, r.R11, r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9, r.Rip, r.Rip - 2} {
			put64(stub, bootSlots+8*i, v)
		}
		if err := l.writeCode(th, stub, l.slack); err != nil {
			return err
		}
		r.Rdi, r.Rsi, r.Rdx, r.R10, r.R8, r.R9 = base, regionSize, 5, 0x100022, ^uint64(0), 0
		r.Rip = l.slack + bootEntry
		th.SetRegs(r)
		return nil
	})
	return tid, inner, err
}

// awaitRegion waits until the region is mapped at base, all of it. The thread tid
// that does it is on its way by itself, and nothing else is known of it. false
// means that it has not been done, because something else is there, the thread has
// been cancelled on its way, or for a reason of the kernel's.
func (l *Loader) awaitRegion(base uint64, tid int) (bool, error) {
	deadline := time.Now().Add(l.patience)
	for pause := 20 * time.Microsecond; ; pause = min(pause+pause/2, time.Millisecond) {
		_, gone := l.proc.Status(tid) // before the mappings are read: it does nothing after that
		maps, err := l.proc.Maps()
		if err != nil {
			return false, err
		}
		taken := false
		for i, m := range maps {
			if i+1 < len(maps) {
				if r, ok := isRegion(m, maps[i+1]); ok && r.Base == base {
					l.region, l.space.Maps = r, maps
					return true, nil
				}
			}
			// Half way, all of the region is as its first part.
			ours := m.Inode == 0 && m.Perm&(procfs.Read|procfs.Write|procfs.Exec) == procfs.Read|procfs.Exec
			taken = taken || m.Start < base+regionSize && m.End > base && !ours
		}
		if taken || gone != nil || time.Now().After(deadline) {
			return false, nil
		}
		time.Sleep(pause)
	}
}

// writeCode writes to pages that the process cannot write: through
// /proc/PID/mem, or word by word through a stopped thread where the kernel
// allows only that (proc_mem.force_override=never). It reads back.
func (l *Loader) writeCode(th *ptrace.Thread, b []byte, addr uint64) error {
	err := l.mem.WriteAt(b, addr)
	if err != nil && th != nil {
		err = th.Poke(b, addr)
	}
	if err != nil {
		return err
	}
	got := make([]byte, len(b))
	if err := l.mem.ReadAt(got, addr); err != nil {
		return err
	}
	if !bytes.Equal(got, b) {
		return &fault.Error{
			Kind: fault.Failed, Code: "write-lost",
			What: "cannot write memory", Where: fmt.Sprintf("%#x", addr), Why: "the bytes read back are not those written",
		}
	}
	return nil
}
