package ptrace

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// aide looks at stopped threads on another processor, while the tracer is still
// waiting for others: only the tracer may ask for registers, but anybody may read
// memory. At first it has the lowest priority of all (SCHED_IDLE, sched(7)), so that a
// thread which has yet to stop hardly waits for it; it spins, so that its processor does
// not sleep, but yields all the time: the scheduler lets even the lowest have its turn, of
// some milliseconds, where others are runnable already. When all have stopped it is raised almost to the tracer's own. The tracer
// never waits for it: what it has not finished when it is needed, the tracer does
// itself.
type aide struct {
	clear   func(tid int, r *Regs) bool
	items   []item
	ready   atomic.Int32 // items that may be looked at
	done    atomic.Int32 // items that need no more looking at
	tid     atomic.Int32 // of the aide, when it runs
	dismiss atomic.Bool
	raised  bool // the tracer's own: it has raised the aide
}

// item is what the aide knows of a stopped thread: copies, for it may still be looking
// when the thread runs again.
type item struct {
	tid   int
	regs  Regs
	state atomic.Int32
}

// noThread is the number of an item that has not been published.
const noThread = -1

// The states of an item.
const (
	untaken int32 = iota
	taken
	cleared
)

// worthAnAide is how many threads there must be.
const worthAnAide = 32

// waitForAide is how long the tracer waits for its aide to begin, before the pause.
const waitForAide = time.Millisecond

// callAide starts an aide for up to n threads, or gives nil if there is no second
// processor. Precondition: this process may change priorities. Without that right the
// aide could be left for long with a processor of the Go scheduler's that it got no
// time to give back.
func callAide(n int, clear func(int, *Regs) bool) *aide {
	if clear == nil || runtime.NumCPU() < 2 || runtime.GOMAXPROCS(0) < 2 {
		return nil
	}
	a := &aide{clear: clear, items: make([]item, n)}
	for i := range a.items { // written once, they are in memory when the pause begins
		a.items[i].tid = noThread
	}
	go a.run()
	for end := time.Now().Add(waitForAide); a.tid.Load() == 0; time.Sleep(20 * time.Microsecond) {
		if time.Now().After(end) {
			a.dismiss.Store(true)
			return nil
		}
	}
	// The aide does not lower itself: it might be kept from running before anybody
	// knows its number, and with it whoever waits for the Go scheduler.
	if errno := setScheduler(int(a.tid.Load()), scheduler{policy: unix.SCHED_IDLE}); errno != 0 {
		a.dismiss.Store(true)
		return nil
	}
	return a
}

// run looks at what is published until it is dismissed. Its thread of the system ends
// with it: the priority must not reach another goroutine.
func (a *aide) run() {
	runtime.LockOSThread()
	a.tid.Store(int32(unix.Gettid()))
	for i := int32(0); !a.dismiss.Load(); {
		if a.ready.Load() == i {
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			continue
		}
		if it := &a.items[i]; it.state.CompareAndSwap(untaken, taken) && a.clear(it.tid, &it.regs) {
			it.state.Store(cleared)
		}
		i++
		a.done.Store(i)
	}
}

// publish gives the aide a stopped thread to look at, and reports whether there was
// room for it.
func (a *aide) publish(th *Thread) bool {
	n := a.ready.Load()
	if int(n) == len(a.items) {
		return false
	}
	it := &a.items[n]
	it.tid, it.regs = th.TID, th.Regs
	th.item = it
	a.ready.Store(n + 1)
	return true
}

// clears reports whether the aide has found a thread clear. If it has not looked at it
// yet, it will not.
func (it *item) clears() bool {
	return !it.state.CompareAndSwap(untaken, taken) && it.state.Load() == cleared
}

// catchUp raises the aide if it is behind: nothing is left to stop, and it may have been
// kept from working by anything else that runs.
func (a *aide) catchUp() {
	if a.done.Load() < a.ready.Load() {
		a.raise()
	}
}

// raise raises the aide. Precondition: it is not dismissed yet, so its thread exists.
func (a *aide) raise() {
	_ = setScheduler(int(a.tid.Load()), scheduler{policy: unix.SCHED_FIFO | unix.SCHED_RESET_ON_FORK, priority: priority - 1})
	a.raised = true
}

// judged says that all are judged. A raised aide goes: resumed threads need its processor.
func (a *aide) judged() {
	if a.raised {
		a.dismiss.Store(true)
	}
}

// end sends the aide away, which may still be looking at one thread.
func (a *aide) end() {
	if !a.dismiss.Load() {
		a.raise() // or it might not learn of it for long
		a.dismiss.Store(true)
	}
}
