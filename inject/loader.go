package inject

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
	"hotpatch/ptrace"
)

// Loader knows how to get into one process. It is made by Prepare before the
// process is touched.
type Loader struct {
	proc  *procfs.Proc
	mem   *procfs.Mem
	space *elfsym.Space
	libc  *libc

	region Region // zero until there is one
	self   uint64 // the process's id as it sees itself
	slack  uint64 // where the bootstrap stub goes, zero until it is needed

	// mustLeave are threads that may still be in code that is to be rewritten.
	mustLeave []leaving

	patience  time.Duration // for one step in the target
	stopLimit time.Duration // for one thread to stop
}

// Prepare finds everything that is needed to load a library into the process,
// without touching it. Faults of kind NoAccess: "static-executable",
// "unknown-libc", "no-slack".
func Prepare(p *procfs.Proc, mem *procfs.Mem, space *elfsym.Space) (*Loader, error) {
	l := &Loader{proc: p, mem: mem, space: space, patience: 5 * time.Second, stopLimit: 500 * time.Millisecond}
	st, err := p.Status(0)
	if err != nil {
		return nil, err
	}
	l.self = uint64(p.PID())
	if n := len(st.NSpid); n > 0 {
		l.self = uint64(st.NSpid[n-1])
	}
	if l.libc, err = findLibc(space); err != nil {
		return nil, err
	}
	if l.libc.pthreadCreate == 0 {
		if err := l.oneArena(); err != nil {
			return nil, err
		}
	}
	if r, ok := Find(space.Maps, mem); ok {
		l.region = r
	} else if _, _, err := l.findSlack(); err != nil {
		return nil, err
	}
	return l, nil
}

// oneArena refuses a program without a thread library whose allocator is
// confined to one arena: it uses that arena without a lock, and the agent would
// use it too.
func (l *Loader) oneArena() error {
	f, err := l.proc.OpenRel("environ", os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	env, err := io.ReadAll(io.LimitReader(f, 4<<20))
	if err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	for _, v := range bytes.Split(env, []byte{0}) {
		if bytes.HasPrefix(v, []byte("MALLOC_ARENA_MAX=")) || bytes.HasPrefix(v, []byte("GLIBC_TUNABLES=")) && bytes.Contains(v, []byte("arena_max")) {
			return &fault.Error{
				Kind: fault.NoAccess, Code: "one-arena", What: "cannot load a library into the process", Where: string(v),
				Why:  "the program has no thread library, and its allocator must not make an arena for another thread",
				Hint: "start it without that setting",
			}
		}
	}
	return nil
}

// Musl reports whether the process uses musl, whose dlclose does nothing and
// whose running threads get no storage for a new library's thread-locals.
func (l *Loader) Musl() bool { return l.libc.musl }

// NoThreadLocals says why a library with thread-local storage cannot be
// loaded, or gives "".
func (l *Loader) NoThreadLocals() string {
	if l.libc.musl {
		return "musl would give storage for new thread-local variables to none of the program's threads"
	}
	return ""
}

// Region gives hotpatch's region in the process, once there is one.
func (l *Loader) Region() (Region, bool) { return l.region, l.region.Base != 0 }

// near is where the region is wanted: at the C library.
func (l *Loader) near() uint64 {
	for _, m := range l.space.Modules {
		if libraryRole(m) != "" {
			return m.Lo
		}
	}
	return highestAddr
}

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
	put64(b, 64, c.If)
}

// Agent is a thread of the target's own that calls what it is asked to. It must
// be closed; if hotpatch dies it ends by itself after some ten seconds.
type Agent struct {
	l        *Loader
	command  uint64
	tid      int // as the target sees it
	tcbTID   uint64
	dead     bool
	tls      uint64    // thread-local storage made by becomeThread, or 0
	deadline time.Time // for everything that it is asked; zero: none
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
	a := &Agent{l: l, tcbTID: l.region.Base + tpOffset + l.libc.tidOffset}
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
	if err := a.await(); err != nil {
		return nil, err
	}
	tid, err := read64(l.mem, l.region.data()+dAgentTID)
	if err != nil {
		return nil, err
	}
	a.tid = int(tid)
	if l.libc.pthreadCreate == 0 {
		if err := a.becomeThread(); err != nil {
			return nil, errors.Join(err, a.Close())
		}
	}
	return a, nil
}

// becomeThread gives a worker that is the agent itself thread-local storage of
// its own, as pthread_create would: the variables of all libraries with their
// initial values, a locale, and a thread control block that says who it is.
func (a *Agent) becomeThread() error {
	l := a.l
	res, err := a.Do(Call{Fn: l.libc.allocateTLS, Args: [6]uint64{0}})
	if err != nil {
		return err
	}
	tp := res[0]
	if tp == 0 {
		return l.noAgent("it has no memory for thread-local variables")
	}
	fake := l.region.Base + tpOffset
	var head [0x38]byte
	if err := l.mem.ReadAt(head[:], fake); err != nil {
		return err
	}
	put64(head[:], 0x00, tp)
	put64(head[:], 0x10, tp)
	// The dynamic thread vector at 0x08 is the one that was allocated.
	for _, part := range [][2]int{{0x00, 0x08}, {0x10, 0x38}} {
		if err := l.mem.WriteAt(head[part[0]:part[1]], tp+uint64(part[0])); err != nil {
			return err
		}
	}
	var id [4]byte
	le.PutUint32(id[:], uint32(a.tid))
	if err := l.mem.WriteAt(id[:], tp+l.libc.tidOffset); err != nil {
		return err
	}
	a.tls = tp
	_, err = a.Do(
		Call{Fn: sysArchPrctl, Args: [6]uint64{archSetFS, tp}, Syscall: true},
		Call{Fn: l.libc.uselocale, Args: [6]uint64{lcGlobalLocale}},
		Call{Fn: l.libc.ctypeInit},
	)
	return err
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

// predecessor sees to it that nothing of an earlier run is left that uses the
// region: the borrowed thread, the worker, the agent. After a run that ended in
// order this is nothing but a look.
func (l *Loader) predecessor(tcbTID uint64) error {
	d := l.region.data()
	var b [dPthread]byte
	if err := l.mem.ReadAt(b[:], d); err != nil {
		return err
	}
	if le.Uint64(b[dCommand:]) == 0 {
		return nil // the region has never been used
	}
	if l.inherited(le.Uint64(b[dOwner:])) {
		return nil
	}
	if tid := int(le.Uint64(b[dBorrowed:])); tid != 0 {
		l.mustLeave = append(l.mustLeave, leaving{inner: tid, lo: l.region.Base, hi: l.region.Base + rootOffset})
	}
	if err := l.dismiss(tcbTID); err != nil {
		return err
	}
	return l.poll("the worker thread of an earlier hotpatch did not end", func() (bool, error) { return l.workerGone(tcbTID) })
}

// workerGone reports whether the worker has ended: the kernel then clears the
// word where its id was. In a forked child the word is a copy, and there is no
// such thread.
func (l *Loader) workerGone(tcbTID uint64) (bool, error) {
	v, err := read64(l.mem, tcbTID)
	if err != nil || uint32(v) == 0 {
		return true, err
	}
	return l.threadGone(int(uint32(v)))
}

// inherited reports whether the region was last used in another process, of
// which this one is a forked child: it has the memory, but none of the threads.
func (l *Loader) inherited(owner uint64) bool { return owner != 0 && owner != l.self }

// dismiss ends an agent whose hotpatch was killed: it is told to do at once what
// it would do by itself some seconds later.
func (l *Loader) dismiss(tcbTID uint64) error {
	d := l.region.data()
	told := false
	return l.poll("the agent of an earlier hotpatch is still busy with a constructor or hook that has not returned", func() (bool, error) {
		var b [dSize]byte
		if err := l.mem.ReadAt(b[:], d); err != nil {
			return false, err
		}
		if le.Uint64(b[dGone:]) != 0 {
			return true, nil
		}
		tid := int(le.Uint64(b[dAgentTID:]))
		if tid == 0 {
			// It has not begun: its thread was made this moment, or never will.
			if le.Uint64(b[l.workerResult():]) != 0 || int64(le.Uint64(b[dCloneResult:])) <= 0 {
				return true, nil
			}
			gone, err := l.workerGone(tcbTID)
			return gone && l.libc.pthreadCreate == 0, err
		}
		if gone, err := l.threadGone(tid); gone || err != nil {
			return gone, err
		}
		if told || le.Uint64(b[dDone:]) != le.Uint64(b[dCommand:]) {
			return false, nil // busy with its last batch
		}
		told = true
		if err := l.mem.WriteAt(b[dAbandonCalls:], d+dCalls); err != nil {
			return false, err
		}
		var w [8]byte
		put64(w[:], 0, 1)
		if err := l.mem.WriteAt(w[:], d+dQuit); err != nil {
			return false, err
		}
		put64(w[:], 0, le.Uint64(b[dCommand:])+1)
		return false, l.mem.WriteAt(w[:], d+dCommand)
	})
}

// poll asks done again and again until it says so, for as long as the loader has
// patience: at first every 20 µs, later every millisecond.
func (l *Loader) poll(what string, done func() (bool, error)) error {
	deadline := time.Now().Add(l.patience)
	for pause := 20 * time.Microsecond; ; pause = min(pause+pause/4, time.Millisecond) {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		if time.Now().After(deadline) {
			return l.late(fmt.Sprintf("%s within %v", what, l.patience))
		}
		time.Sleep(pause)
	}
}

// late is noAgent where more time may help.
func (l *Loader) late(why string) error {
	return &fault.Error{
		Kind: fault.Busy, Code: "no-agent",
		What: fmt.Sprintf("cannot run code in process %d now", l.proc.PID()), Why: why,
		Hint: "the process goes on unharmed; it may be starved of processor time: try again, or give it more time with --timeout",
	}
}

func (l *Loader) noAgent(why string) error {
	return &fault.Error{
		Kind: fault.Failed, Code: "no-agent",
		What: fmt.Sprintf("cannot run code in process %d", l.proc.PID()), Why: why,
		Hint: "the process goes on unharmed; it may be stopped, starved of processor time or out of memory or threads",
	}
}

// redirectToClone writes the code page and the slots and sends a stopped thread
// to the clone stub.
func (l *Loader) redirectToClone(t *ptrace.Tracer, th *ptrace.Thread, inner int) error {
	if err := l.awaitLeft(t, th); err != nil {
		return err
	}
	// No thread is in the bootstrap any more: its traces are removed.
	if l.slack != 0 {
		if err := l.writeCode(th, make([]byte, len(bootCode)), l.slack); err != nil {
			return err
		}
		l.slack = 0
	}
	base, d := l.region.Base, l.region.data()
	have := make([]byte, len(regionCode))
	if err := l.mem.ReadAt(have, base); err != nil {
		return err
	}
	if !bytes.Equal(have, regionCode) {
		if err := l.writeCode(th, regionCode, base); err != nil {
			return err
		}
	}
	if err := l.writeTCB(th); err != nil {
		return err
	}

	r := th.Regs
	b := make([]byte, dSize)
	for i, v := range []uint64{r.R15, r.R14, r.R13, r.R12, r.Rbp, r.Rbx, r.R11, r.R10, r.R9, r.R8, r.Rax, r.Rcx, r.Rdx, r.Rsi, r.Rdi, r.Rip, r.Rip - 2} {
		put64(b, dSaved+8*i, v)
	}
	if r.RestartsUnlessHandled() {
		put64(b, dRipNoHand, r.Rip)
	}
	put64(b, dMaskBlock, blockMask)
	put64(b, dMaskWorker, workerMask)
	put64(b, dCloneFlags, cloneFlags)
	put64(b, dCloneStack, base+stackTop)
	put64(b, dCloneTLS, base+tpOffset)
	put64(b, dCloneCTID, base+tpOffset+l.libc.tidOffset)
	put64(b, dMXCSR, mxcsrDefault)
	put64(b, dShortTime+8, 20_000)   // ns
	put64(b, dLongTime+8, 2_000_000) // ns
	put64(b, dShortNaps, 1000)       // some 80 ms
	put64(b, dLongNaps, 5000)        // some 10 s
	put64(b, dCommand, 1)
	put64(b, dBorrowed, uint64(inner))
	put64(b, dOwner, l.self)
	for i, c := range l.firstCalls() {
		c.encode(b[dCalls+callSize*i:])
	}
	for i, c := range l.workerCalls() {
		c.encode(b[dWorkerCalls+callSize*i:])
	}
	if err := l.mem.WriteAt(b, d); err != nil {
		return err
	}
	r.Rip = base + cloneEntry
	th.SetRegs(r)
	return nil
}

const (
	sysMmap        = 9
	sysMunmap      = 11
	sysClose       = 3
	sysArchPrctl   = 158
	sysMemfdCreate = 319

	archSetFS = 0x1002 // ARCH_SET_FS of <asm/prctl.h>
)

// workerCalls is what the raw thread does: ask for a real thread, or, where
// there is no thread library, be the agent itself (see becomeThread). The call
// whose result counts is the last one.
//
// Of glibc's thread-local variables, only the locale does not begin with zero.
// pthread_create needs it: malloc asks for the number of processors before it
// makes another arena, which parses a file.
func (l *Loader) workerCalls() []Call {
	agent := l.region.Base + agentEntry
	if l.libc.pthreadCreate == 0 {
		return []Call{{Fn: agent}}
	}
	create := Call{Fn: l.libc.pthreadCreate, Args: [6]uint64{l.region.data() + dPthread, 0, agent, 0}}
	if l.libc.musl {
		return []Call{create}
	}
	return []Call{{Fn: l.libc.uselocale, Args: [6]uint64{lcGlobalLocale}}, create}
}

// lcGlobalLocale is LC_GLOBAL_LOCALE of <locale.h>.
const lcGlobalLocale = ^uint64(0)

// workerResult is where in D the result of the worker's last call will be. The
// page is zero before it.
func (l *Loader) workerResult() uint64 {
	return dWorkerCalls + uint64(len(l.workerCalls())-1)*callSize + callResult
}

// firstCalls is the agent's first batch: nobody will join its thread, so that
// the stack is used again.
func (l *Loader) firstCalls() []Call {
	if l.libc.pthreadCreate == 0 {
		return nil
	}
	self := l.region.data() + dCalls + callResult
	return []Call{{Fn: l.libc.pthreadSelf}, {Fn: l.libc.pthreadDetach, Args: [6]uint64{self}, Deref: 1}}
}

// writeTCB makes the worker's thread control block, with what it shares with
// every thread (the dynamic thread vector, the stack and pointer guards) taken
// from the stopped thread.
func (l *Loader) writeTCB(th *ptrace.Thread) error {
	tp := l.region.Base + tpOffset
	var live [0x400]byte
	if err := l.mem.ReadAt(live[:], th.Regs.FsBase); err != nil {
		return &unsuitable{th.TID, "has no thread control block yet"}
	}
	if le.Uint64(live[:]) != th.Regs.FsBase {
		return &unsuitable{th.TID, "has a thread control block that does not point to itself"}
	}
	// A glibc before 2.34 without libpthread keeps no id.
	id := int(le.Uint32(live[l.libc.tidOffset:]))
	if !l.isTID(th.TID, id) && (l.libc.pthreadCreate != 0 || id != 0) {
		return &unsuitable{th.TID, fmt.Sprintf("has %d instead of its thread id at offset %#x of its thread control block", id, l.libc.tidOffset)}
	}
	b := make([]byte, tcbSize)
	if l.libc.musl {
		copy(b, live[:muslCopyEnd])
		put64(b, 0x10, tp) // prev
		put64(b, 0x18, tp) // next
		le.PutUint32(b[muslTID:], 0)
	} else {
		put64(b, 0x08, le.Uint64(live[0x08:])) // dtv
		put64(b, glibcMultiple, 1)
		// A process with one thread leaves out locks (malloc before 2.34 does).
		// Its own pthread_create would end that; the worker's cannot. Without a
		// thread library it must stay so: its loader relies on it.
		if l.libc.pthreadCreate != 0 && le.Uint32(live[glibcMultiple:]) == 0 {
			if err := l.mem.WriteAt([]byte{1, 0, 0, 0}, th.Regs.FsBase+glibcMultiple); err != nil {
				return err
			}
		}
		put64(b, glibcStackGuard, le.Uint64(live[glibcStackGuard:]))
		put64(b, glibcPtrGuard, le.Uint64(live[glibcPtrGuard:]))
	}
	put64(b, 0x00, tp)
	if !l.libc.musl {
		put64(b, 0x10, tp)
	}
	return l.mem.WriteAt(b, tp)
}

// isTID reports whether a thread has the id inner in its own PID namespace.
func (l *Loader) isTID(tid, inner int) bool {
	if tid == inner {
		return true
	}
	st, err := l.proc.Status(tid)
	return err == nil && len(st.NSpid) > 0 && st.NSpid[len(st.NSpid)-1] == inner
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
func (a *Agent) Do(calls ...Call) ([]uint64, error) { return a.do(0, calls) }

func (a *Agent) do(quit uint64, calls []Call) ([]uint64, error) {
	if a.dead {
		return nil, a.l.noAgent("the agent has ended")
	}
	if len(calls) > maxCalls {
		return nil, ErrBatch
	}
	d := a.l.region.data()
	b := make([]byte, callSize*(len(calls)+1))
	for i, c := range calls {
		c.encode(b[callSize*i:])
	}
	if err := a.l.mem.WriteAt(b, d+dCalls); err != nil {
		return nil, err
	}
	var w [8]byte
	if quit != 0 {
		put64(w[:], 0, quit)
		if err := a.l.mem.WriteAt(w[:], d+dQuit); err != nil {
			return nil, err
		}
	}
	a.command++
	put64(w[:], 0, a.command)
	if err := a.l.mem.WriteAt(w[:], d+dCommand); err != nil {
		return nil, err
	}
	if err := a.await(); err != nil {
		return nil, err
	}
	results := make([]uint64, len(calls))
	if err := a.l.mem.ReadAt(b, d+dCalls); err != nil {
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
	_, err := a.do(1, a.ceaseThread())
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

// Dismiss ends what is left of a hotpatch that was killed: its agent undoes its
// work and ends. It touches nothing else, and does nothing if there is no agent.
func (l *Loader) Dismiss() error {
	if l.region.Base == 0 {
		return nil
	}
	command, err := read64(l.mem, l.region.data()+dCommand)
	if err != nil || command == 0 {
		return err
	}
	owner, err := read64(l.mem, l.region.data()+dOwner)
	if err != nil {
		return err
	}
	if l.inherited(owner) {
		return nil
	}
	return l.dismiss(l.region.Base + tpOffset + l.libc.tidOffset)
}
