package inject

import (
	"bytes"
	"fmt"

	"hotpatch/ptrace"
)

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
	sysFstat       = 5

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
	calls := []Call{{Fn: l.libc.uselocale, Args: [6]uint64{lcGlobalLocale}}}
	if l.libc.attrInit != 0 && l.libc.attrSetStack != 0 {
		attr := l.region.data() + dAttr
		calls = append(calls, Call{Fn: l.libc.attrInit, Args: [6]uint64{attr}}, Call{Fn: l.libc.attrSetStack, Args: [6]uint64{attr, agentStack}})
		create.Args[1] = attr
	}
	return append(calls, create)
}

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
	if !l.nested {
		return false
	}
	st, err := l.proc.Status(tid)
	return err == nil && len(st.NSpid) > 0 && st.NSpid[len(st.NSpid)-1] == inner
}
