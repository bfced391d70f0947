package ptrace

import (
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// priority is the real-time priority of the pause.
const priority = 50

// Hurry puts the calling thread above ordinary ones, if it may have that, until the
// result is called: for as long as something is stopped that is not to wait for whatever
// else runs.
func (t *Tracer) Hurry() (relax func()) {
	keepProcessor()
	relax, _ = goFirst()
	return relax
}

// goFirst gives the calling thread the priority of the pause; raised says whether it may
// have it, and relax takes it away.
func goFirst() (relax func(), raised bool) {
	before, errno := getScheduler(0)
	if errno != 0 || setScheduler(0, scheduler{policy: unix.SCHED_FIFO | unix.SCHED_RESET_ON_FORK, priority: priority}) != 0 {
		return func() {}, false
	}
	return func() { _ = setScheduler(0, before) }, true
}

// keepProcessor has the Go scheduler leave the calling goroutine alone for the next 10 ms. It
// takes the processor from one that has had it for longer, for which it begins a thread or
// two, and that must not be while something is stopped.
func keepProcessor() { runtime.Gosched() }

// raise puts the calling thread above ordinary ones, the other threads of this program
// below them, and stops the garbage collector; the result undoes all that. Without the
// right to a real-time priority the pause is longer on a busy machine, and nothing else
// changes.
func (t *Tracer) raise() (undo func()) {
	gc := debug.SetGCPercent(-1)
	t.others.ordinary, _ = getScheduler(0)
	relax, raised := goFirst()
	if raised && mayLeaveIdle() {
		t.others.stepBack()
	}
	return func() {
		t.others.comeForth()
		relax()
		debug.SetGCPercent(gc)
	}
}

// others are the threads of this program but the calling one.
type others struct {
	ordinary scheduler         // what the calling thread has outside of a pause
	was      map[int]scheduler // what each had before it stepped back
}

// stepBack lets them run only where nothing else does: those of the Go runtime wake up all
// the time to look whether there is something to do, and the scheduler prefers them, who
// have hardly run, to threads that are waiting for a processor to be stopped.
func (o *others) stepBack() {
	if o.ordinary.policy == unix.SCHED_IDLE {
		return // so have they
	}
	o.was = make(map[int]scheduler)
	o.each(func(tid int, has scheduler) {
		if has.policy == unix.SCHED_IDLE {
			has = o.ordinary // left over, see comeForth
		}
		if setScheduler(tid, scheduler{policy: unix.SCHED_IDLE}) == 0 {
			o.was[tid] = has
		}
	})
}

// comeForth lets them run as before, and also those that one of them has begun meanwhile,
// which inherited the policy: one of them alone would keep this program from ending for as
// long as other programs take all processors. One that is just being begun cannot be seen
// yet; so this is called again later.
func (o *others) comeForth() {
	if o.was == nil {
		return
	}
	o.each(func(tid int, has scheduler) {
		if has.policy != unix.SCHED_IDLE {
			return
		}
		was, known := o.was[tid]
		if !known {
			was = o.ordinary
		}
		_ = setScheduler(tid, was)
	})
}

// each calls f with every thread and what it has. Without /proc, there is none.
func (o *others) each(f func(tid int, has scheduler)) {
	tids, _ := os.ReadDir("/proc/self/task")
	for _, entry := range tids {
		tid, err := strconv.Atoi(entry.Name())
		if err != nil || tid == unix.Gettid() {
			continue
		}
		if has, errno := getScheduler(tid); errno == 0 {
			f(tid, has)
		}
	}
}

// mayLeaveIdle reports whether the policy SCHED_IDLE can be left again, which is a right of
// its own, see sched(7).
func mayLeaveIdle() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_NICE) != 0
}
