package ptrace

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// alarmSignal interrupts a wait that has reached its deadline. It is sent to
// the locked thread only, by a timer of this process only.
const alarmSignal = syscall.Signal(60)

// alarm makes waits of this thread give up after d. It is a timer of the kernel's: a
// goroutine would need a processor, and the scheduler's leave, at the very moment at
// which neither may be had. The wait may not have begun when it rings, so it rings
// again every millisecond, until stop.
func (t *Tracer) alarm(d time.Duration) (stop func(), err error) {
	id, errno := createTimer(int32(unix.Gettid()), int32(alarmSignal))
	if errno == 0 {
		errno = setTimer(id, max(d, time.Microsecond), time.Millisecond)
	}
	if errno != 0 {
		return nil, &fault.Error{
			Kind: fault.Failed, Code: "no-timer", What: "cannot watch the time of a stop", Why: errno.Error(),
			Hint: "the user of hotpatch may have too many signals pending (ulimit -i)",
		}
	}
	t.interruptAt = time.Now().Add(d)
	return func() {
		deleteTimer(id)
		t.interruptAt = time.Time{}
	}, nil
}
