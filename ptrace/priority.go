package ptrace

import (
	"os"
	"runtime"
	"runtime/debug"
	"slices"
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
	return goFirst()
}

// goFirst gives the calling thread the priority of the pause, if it may have it; relax takes
// it away. The kernel makes of the timer slack what it was when the thread began.
func goFirst() (relax func()) {
	slack := timerSlack()
	before, errno := getScheduler(0)
	if errno != 0 || setScheduler(0, scheduler{policy: unix.SCHED_FIFO | unix.SCHED_RESET_ON_FORK, priority: priority}) != 0 {
		return func() {}
	}
	return func() {
		_ = setScheduler(0, before)
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0)
	}
}

// keepProcessor has the Go scheduler leave the calling goroutine alone for the next 10 ms. It
// takes the processor from one that has had it for longer, for which it begins a thread or
// two, and that must not be while something is stopped.
func keepProcessor() { runtime.Gosched() }

// raise puts the calling thread above ordinary ones, keeps the other threads of this
// program asleep, and stops the garbage collector; the result undoes all that. Without the
// right to do the first two (CAP_SYS_NICE) the pause is longer on a busy machine, and nothing
// else changes.
func raise() (undo func()) {
	gc := debug.SetGCPercent(-1)
	shorten := lengthenNaps()
	relax := goFirst()
	return func() {
		relax()
		shorten()
		debug.SetGCPercent(gc)
	}
}

// lengthenNaps makes the short sleeps of the other threads of this program long. One thread
// of the Go runtime looks every 20 µs whether there is something for it to do; in a pause
// there is not, and each time it takes a processor from threads that are waiting for one to
// be stopped, and the kernel has to change address spaces twice. The kernel lets a thread
// sleep for longer if it may be late (timer slack, see prctl(2)).
//
// The result undoes it, also for threads that were begun meanwhile, which inherited it. One
// that is just being begun cannot be seen yet, and may be late for ever.
func lengthenNaps() (shorten func()) {
	slack, before := timerSlack(), otherThreads()
	setSlack(before, longSlack)
	return func() {
		now := otherThreads()
		for _, tid := range before { // a list that is read while threads end may be too short
			if !slices.Contains(now, tid) {
				now = append(now, tid)
			}
		}
		setSlack(now, slack)
	}
}

// How late threads may wake up, in nanoseconds: ordinarily, and in a pause. The latter is not
// much, since who falls asleep in the pause sleeps on behind it.
const (
	usualSlack = 50_000
	longSlack  = 5_000_000
)

// timerSlack gives how late the calling thread may wake up.
func timerSlack() int {
	if slack, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); err == nil && slack > 0 {
		return slack
	}
	return usualSlack // a real-time thread has none
}

// otherThreads gives the numbers of this program's threads but the calling one. Without
// /proc, there are none.
func otherThreads() (tids []string) {
	self := strconv.Itoa(unix.Gettid())
	entries, _ := os.ReadDir("/proc/self/task")
	for _, entry := range entries {
		if entry.Name() != self {
			tids = append(tids, entry.Name())
		}
	}
	return tids
}

// setSlack changes the timer slack of threads, as far as they are there and that is allowed
// (proc_pid_timerslack_ns(5)).
func setSlack(tids []string, ns int) {
	value := strconv.AppendInt(nil, int64(ns), 10)
	for _, tid := range tids {
		if fd, err := unix.Open("/proc/"+tid+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
			_, _ = unix.Write(fd, value)
			unix.Close(fd)
		}
	}
}
