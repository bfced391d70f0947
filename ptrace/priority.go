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

// Hurry puts the calling thread above ordinary ones and lets the Go runtime watch less
// closely, if it may do that (CAP_SYS_NICE), until the result is called: for as long
// as something is stopped that is not to wait for whatever else runs. Without the right,
// what is stopped stays so for longer on a busy machine, and nothing else changes.
func (t *Tracer) Hurry() (relax func()) {
	keepProcessor()
	return goFirst()
}

// goFirst is Hurry; relax undoes it.
func goFirst() (relax func()) {
	slack := timerSlack()
	before, errno := getScheduler(0)
	shorten := lengthenNaps()
	if errno != 0 || setScheduler(0, scheduler{policy: unix.SCHED_FIFO | unix.SCHED_RESET_ON_FORK, priority: priority}) != 0 {
		return shorten
	}
	return func() {
		_ = setScheduler(0, before)
		// Otherwise it is now what the thread has begun with.
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0)
		shorten()
	}
}

// keepProcessor has the Go scheduler leave the calling goroutine alone for the next 10 ms. It
// takes the processor from one that has had it for longer, for which it begins a thread or
// two, and that must not be while something is stopped.
func keepProcessor() { runtime.Gosched() }

// raise is Hurry for a pause, in which no garbage is collected either.
func raise() (undo func()) {
	gc := debug.SetGCPercent(-1)
	relax := goFirst()
	return func() {
		relax()
		debug.SetGCPercent(gc)
	}
}

// lengthenNaps makes the short sleeps of the Go runtime's watching thread long. It looks every
// 20 µs whether there is something for it to do; in a pause there is not, and each time it
// takes a processor from threads that are waiting for one to be stopped, and the kernel has
// to change address spaces twice. The kernel lets a thread sleep for longer if it may be late
// (timer slack, see prctl(2)).
//
// The result undoes it, also for threads that the watching one has begun meanwhile, which
// inherited it. One that is just being begun cannot be seen yet, and may be late for ever.
func lengthenNaps() (shorten func()) {
	slack, before := timerSlack(), ownThreads()
	if len(before) < 2 {
		return func() {}
	}
	watcher := before[1] // the runtime begins it before all others
	setSlack(watcher, longSlack)
	return func() {
		setSlack(watcher, slack)
		for _, tid := range ownThreads() {
			if !slices.Contains(before, tid) {
				setSlack(tid, slack)
			}
		}
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

// ownThreads gives the numbers of this program's threads, in the order in which they were
// begun. Without /proc, there are none.
func ownThreads() []string {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return nil
	}
	defer dir.Close()
	tids, _ := dir.Readdirnames(-1)
	return tids
}

// setSlack changes the timer slack of a thread of this program, if it is still there and that
// is allowed (proc_pid_timerslack_ns(5)).
func setSlack(tid string, ns int) {
	if fd, err := unix.Open("/proc/"+tid+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0); err == nil {
		_, _ = unix.Write(fd, strconv.AppendInt(nil, int64(ns), 10))
		unix.Close(fd)
	}
}
