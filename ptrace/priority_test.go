package ptrace

import (
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRaise: in a pause, the calling thread goes first and the other threads of this
// program last, if that can be taken back; afterwards all is as before.
func TestRaise(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self := unix.Gettid()
	policies := func() map[int]scheduler {
		t.Helper()
		tids, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		list := map[int]scheduler{}
		for _, entry := range tids {
			tid, err := strconv.Atoi(entry.Name())
			if err != nil {
				t.Fatal(err)
			}
			if s, errno := getScheduler(tid); errno == 0 {
				list[tid] = s
			}
		}
		return list
	}
	before := policies()
	if len(before) < 3 {
		t.Fatalf("this program has only the threads %v", before)
	}
	undo := raise()
	within := policies()
	undo()
	after := policies()

	raised := within[self].policy&^unix.SCHED_RESET_ON_FORK == unix.SCHED_FIFO
	if raised != (setScheduler(0, scheduler{policy: unix.SCHED_FIFO, priority: 1}) == 0) {
		t.Errorf("the calling thread has %+v", within[self])
	}
	if raised {
		_ = setScheduler(0, before[self])
	}
	for tid, was := range before {
		want := was.policy
		if raised && mayLeaveIdle() {
			want = unix.SCHED_IDLE
		}
		if now, ok := within[tid]; ok && tid != self && now.policy != want {
			t.Errorf("thread %d has the policy %d, want %d", tid, now.policy, want)
		}
		if now, ok := after[tid]; ok && now != was {
			t.Errorf("thread %d has %+v afterwards, and had %+v before", tid, now, was)
		}
	}
}
