package ptrace

import (
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// priority is the real-time priority of the pause.
const priority = 50

// Hurry puts the calling thread above ordinary ones, if it may have that, until the
// result is called: for as long as something is stopped that is not to wait for whatever
// else runs.
func (t *Tracer) Hurry() (relax func()) {
	before, errno := getScheduler()
	if errno != 0 || setScheduler(0, scheduler{policy: unix.SCHED_FIFO | unix.SCHED_RESET_ON_FORK, priority: priority}) != 0 {
		return func() {}
	}
	return func() { _ = setScheduler(0, before) }
}

// raise puts the calling thread above ordinary ones and stops the garbage
// collector; the result undoes both. Without the right to a real-time priority
// the pause is longer on a busy machine, and nothing else changes.
func raise() (undo func()) {
	gc := debug.SetGCPercent(-1)
	before, errno := getScheduler()
	raised := errno == 0 && setScheduler(0, scheduler{policy: unix.SCHED_FIFO | unix.SCHED_RESET_ON_FORK, priority: priority}) == 0
	return func() {
		if raised {
			_ = setScheduler(0, before)
		}
		debug.SetGCPercent(gc)
	}
}
