package ptrace

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// aide looks at stopped threads on another processor, while the tracer is still
// waiting for others: only the tracer may ask for registers, but anybody may read
// memory. It has the lowest priority of all (SCHED_IDLE, sched(7)), so that a thread
// which has yet to stop never waits for it, and the tracer never waits for it either:
// what the aide has not finished when it is needed, the tracer does itself. It spins,
// so that its processor does not sleep.
type aide struct {
	clear   func(tid int, r *Regs) bool
	items   []item
	ready   atomic.Int32 // items that may be looked at
	here    atomic.Bool  // it runs
	dismiss atomic.Bool
}

// item is what the aide knows of a stopped thread: copies, for it may still be looking
// when the thread runs again.
type item struct {
	tid   int
	regs  Regs
	state atomic.Int32
}

// The states of an item.
const (
	untaken int32 = iota
	taken
	cleared
)

// waitForAide is how long the tracer waits for its aide to begin, before the pause.
const waitForAide = time.Millisecond

// callAide starts an aide for up to n threads, or gives nil if there is no second
// processor.
func callAide(n int, clear func(int, *Regs) bool) *aide {
	if clear == nil || runtime.NumCPU() < 2 || runtime.GOMAXPROCS(0) < 2 {
		return nil
	}
	a := &aide{clear: clear, items: make([]item, n)}
	go a.run()
	for end := time.Now().Add(waitForAide); !a.here.Load() && time.Now().Before(end); {
		time.Sleep(20 * time.Microsecond)
	}
	return a
}

// run looks at what is published until it is dismissed. Its thread of the system ends
// with it: the priority must not reach another goroutine.
func (a *aide) run() {
	runtime.LockOSThread()
	if errno := setScheduler(scheduler{policy: unix.SCHED_IDLE}); errno != 0 {
		return
	}
	a.here.Store(true)
	for i := int32(0); int(i) < len(a.items); i++ {
		for a.ready.Load() <= i && !a.dismiss.Load() {
		}
		if a.dismiss.Load() {
			return
		}
		if it := &a.items[i]; it.state.CompareAndSwap(untaken, taken) && a.clear(it.tid, &it.regs) {
			it.state.Store(cleared)
		}
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

// end sends the aide away. On a busy machine it may be a while before the aide gets to
// know.
func (a *aide) end() { a.dismiss.Store(true) }
