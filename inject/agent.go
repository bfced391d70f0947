package inject

import (
	"errors"
	"fmt"
	"time"

	"hotpatch/ptrace"
)

// Call is one call in the target.
type Call struct {
	Fn      uint64    // address of a function, or number of a system call
	Args    [6]uint64 //
	Deref   uint8     // bit i: argument i is the address of its value
	Syscall bool      // Fn is a system call number
	If      uint64    // address of a word: the call is left out if it is 0; 0: always
}

func (c Call) encode(b []byte) {
	put64(b, 0, c.Fn)
	for i, a := range c.Args {
		put64(b, 8+8*i, a)
	}
	flags := uint64(c.Deref)
	if c.Syscall {
		flags |= 1 << 8
	}
	put64(b, callFlags, flags)
	put64(b, callIf, c.If)
}

// Agent is a thread of the target's own that calls what it is asked to. It must
// be closed; if hotpatch dies it ends by itself after some ten seconds.
type Agent struct {
	l        *Loader
	tracer   *ptrace.Tracer
	command  uint64
	tid      int // as the target sees it
	tcbTID   uint64
	dead     bool
	tls      uint64    // thread-local storage made by becomeThread, or 0
	deadline time.Time // for everything that it is asked; zero: none
	abandon  []Call    // what OnAbandon has said

	separated bool // it has file descriptors of its own, see separate
}

// Start makes an agent in the process: it borrows one thread once, or twice if
// the process has no region yet. Precondition: within ptrace.Run, nothing is
// stopped. Faults: "target-stopped", "no-thread" (Busy), "no-room",
// "no-executable-memory", "no-agent".
func (l *Loader) Start(t *ptrace.Tracer) (*Agent, error) {
	if l.region.Base == 0 {
		if err := l.bootstrap(t); err != nil {
			return nil, err
		}
	} else if slack, stale, err := l.findSlack(); err == nil && stale {
		// A hotpatch was killed after it had made the region and before it
		// removed the bootstrap.
		l.slack = slack
		l.mustLeave = append(l.mustLeave, leaving{lo: slack, hi: slack + uint64(len(bootCode))})
	}
	a := &Agent{l: l, tracer: t, tcbTID: l.region.Base + tpOffset + l.libc.tidOffset}
	if err := l.predecessor(a.tcbTID); err != nil {
		return nil, err
	}
	if err := l.beginThreadLocals(); err != nil {
		return nil, err
	}
	// Better before a thread is stopped, where the kernel allows it then.
	_ = l.writeCode(nil, regionCode, l.region.Base)
	err := l.borrow(t, func(th *ptrace.Thread, inner int) error { return l.redirectToClone(t, th, inner) })
	if err != nil {
		return nil, err
	}
	// The worker starts the agent, which begins with a batch of its own.
	began := time.Now()
	if err := a.await(); err != nil {
		return nil, err
	}
	tid, err := read64(l.mem, l.region.data()+dAgentTID)
	if err != nil {
		return nil, err
	}
	a.tid = int(tid)
	if time.Since(began) > starved {
		a.prefer()
	}
	if l.libc.pthreadCreate == 0 {
		if err := a.becomeThread(); err != nil {
			return nil, errors.Join(err, a.Close())
		}
	}
	return a, nil
}

// ceaseThread undoes becomeThread.
func (a *Agent) ceaseThread() []Call {
	if a.tls == 0 {
		return nil
	}
	return []Call{
		{Fn: sysArchPrctl, Args: [6]uint64{archSetFS, a.l.region.Base + tpOffset}, Syscall: true},
		{Fn: a.l.libc.deallocateTLS, Args: [6]uint64{a.tls, 1}},
	}
}

// await waits until the newest batch is done.
func (a *Agent) await() error {
	l, d := a.l, a.l.region.data()
	if a.command == 0 {
		a.command = 1
	}
	deadline := time.Now().Add(l.patience)
	for pause := 20 * time.Microsecond; ; pause = min(pause+pause/4, time.Millisecond) {
		var b [0x20]byte // DONE, QUIT, GONE
		if err := l.mem.ReadAt(b[:], d+dDone); err != nil {
			a.dead = true
			return err
		}
		if le.Uint64(b[:]) == a.command {
			return nil
		}
		if le.Uint64(b[dGone-dDone:]) != 0 {
			// It says that it has done its last batch just before that it is gone.
			if done, err := read64(l.mem, d+dDone); err == nil && done == a.command {
				return nil
			}
			a.dead = true
			return l.noAgent("the agent ended before it was told to")
		}
		if a.command == 1 {
			// The thread has not come to life yet: has it been made at all?
			res, err := read64(l.mem, d+dCloneResult)
			if err != nil {
				return err
			}
			if e := int64(res); e < 0 {
				a.dead = true
				return l.noAgent(fmt.Sprintf("it cannot make a thread (errno %d)", -e))
			}
			made, err := read64(l.mem, d+l.workerResult())
			if err != nil {
				return err
			}
			gone, err := read64(l.mem, a.tcbTID)
			if err != nil {
				return err
			}
			if res != 0 && l.libc.pthreadCreate != 0 && made != 0 && uint32(gone) == 0 {
				a.dead = true
				return l.noAgent(fmt.Sprintf("pthread_create gives error %d", int32(made)))
			}
			if time.Now().After(deadline) {
				a.dead = true
				return l.late(fmt.Sprintf("its thread did not answer within %v", l.patience))
			}
		} else if time.Now().After(deadline) {
			// A batch takes as long as it takes (a constructor may), but
			// a process that has ended or was stopped never answers.
			st, err := l.proc.Status(0)
			if err != nil || st.State == 'X' {
				a.dead = true
				return l.noAgent("the process has ended")
			}
			if st.State == 'T' {
				a.dead = true
				return Stopped(l.proc.PID())
			}
			deadline = time.Now().Add(l.patience)
		}
		if !a.deadline.IsZero() && time.Now().After(a.deadline) {
			a.dead = true
			return l.late("what runs there did not end in time; a lock of the program may be held, such as the loader's")
		}
		time.Sleep(pause)
	}
}

// SetDeadline says until when the agent's calls must have ended. What has not
// ended then is given up: the agent finishes the call whenever it can, undoes
// what OnAbandon said, and ends.
func (a *Agent) SetDeadline(d time.Time) { a.deadline = d }

// ErrBatch says that more calls were given than fit into one batch.
var ErrBatch = errors.New("too many calls in one batch")

// Do makes the calls one after the other and gives their results (for C
// functions that return int, only the low 32 bits mean anything).
func (a *Agent) Do(calls ...Call) ([]uint64, error) { return a.do(false, calls) }

func (a *Agent) do(last bool, calls []Call) ([]uint64, error) {
	if err := a.ask(last, calls); err != nil {
		return nil, err
	}
	return a.results(len(calls))
}

// ask gives the agent a batch of calls, which may be its last one.
func (a *Agent) ask(last bool, calls []Call) error {
	if a.dead {
		return a.l.noAgent("the agent has ended")
	}
	if len(calls) > maxCalls {
		return ErrBatch
	}
	d := a.l.region.data()
	b := make([]byte, callSize*(len(calls)+1))
	for i, c := range calls {
		c.encode(b[callSize*i:])
	}
	if err := a.l.mem.WriteAt(b, d+dCalls); err != nil {
		return err
	}
	a.command++
	var w [8]byte
	put64(w[:], 0, a.command)
	if last {
		if err := a.l.mem.WriteAt(w[:], d+dQuit); err != nil {
			return err
		}
	}
	return a.l.mem.WriteAt(w[:], d+dCommand)
}

// results waits until the batch is done and gives what its n calls returned.
func (a *Agent) results(n int) ([]uint64, error) {
	if err := a.await(); err != nil {
		return nil, err
	}
	results := make([]uint64, n)
	b := make([]byte, callSize*n)
	if err := a.l.mem.ReadAt(b, a.l.region.data()+dCalls); err != nil {
		return nil, err
	}
	for i := range results {
		results[i] = le.Uint64(b[callSize*i+callResult:])
	}
	return results, nil
}

// Close ends the agent and waits until it has left hotpatch's code.
func (a *Agent) Close() error {
	if a.dead {
		return nil
	}
	_, err := a.do(true, a.ceaseThread())
	a.dead = true
	if err != nil {
		return err
	}
	return a.l.poll("the agent's thread did not end", func() (bool, error) { return a.l.threadGone(a.tid) })
}

// threadGone reports whether no thread has the id inner, in the innermost PID
// namespace of the process.
func (l *Loader) threadGone(inner int) (bool, error) {
	tids, err := l.proc.Tasks()
	if err != nil {
		return false, err
	}
	leader, err := l.proc.Status(0)
	if err != nil {
		return false, err
	}
	nested := len(leader.NSpid) > 1
	for _, tid := range tids {
		if tid == inner && !nested || nested && l.isTID(tid, inner) {
			return false, nil
		}
	}
	return true, nil
}
