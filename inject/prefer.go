package inject

import (
	"time"

	"golang.org/x/sys/unix"
)

// highestNice is the nice value of the threads that go first, see sched(7).
const highestNice = -20

// starved is how long it takes an agent to begin only where threads wait for a processor:
// otherwise it is a millisecond or two.
const starved = 200 * time.Millisecond

// prefer lets the agent's thread go before ordinary ones, as far as hotpatch may decide
// that. Where hundreds of threads want each processor, every one of its waits would take
// a round of them, seconds altogether; and who waits for a lock that it holds meanwhile,
// the loader's or the allocator's, would wait as long. Elsewhere it would only keep the
// program's threads waiting for a processor.
//
// Threads that it begins, in a constructor of a patch, are ordinary ones
// (SCHED_RESET_ON_FORK): which is right only if it was one itself.
func (a *Agent) prefer() {
	tid, ok := a.l.outer(a.tid)
	if !ok {
		return
	}
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil || attr.Policy != unix.SCHED_NORMAL || attr.Nice != 0 || attr.Flags != 0 {
		return
	}
	attr.Nice, attr.Flags = highestNice, unix.SCHED_FLAG_RESET_ON_FORK
	_ = unix.SchedSetAttr(tid, attr, 0) // without the right to it, it takes longer
}

// outer gives the id of a thread as hotpatch sees it, by its id in its own PID namespace.
func (l *Loader) outer(inner int) (tid int, ok bool) {
	if !l.nested {
		return inner, true
	}
	tids, err := l.proc.Tasks()
	if err != nil {
		return 0, false
	}
	for _, tid := range tids {
		if l.isTID(tid, inner) {
			return tid, true
		}
	}
	return 0, false
}
