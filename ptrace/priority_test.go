package ptrace

import (
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ownSchedulers gives what each thread of this program has.
func ownSchedulers(t *testing.T) map[int]scheduler {
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

// TestRaise: in a pause, the calling thread goes first and the other threads of this
// program last, if that can be taken back; afterwards all is as before.
func TestRaise(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self := unix.Gettid()
	before := ownSchedulers(t)
	if len(before) < 3 {
		t.Fatalf("this program has only the threads %v", before)
	}
	undo := new(Tracer).raise()
	within := ownSchedulers(t)
	undo()
	after := ownSchedulers(t)

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

// TestRaiseInherited: threads that are begun in a pause by those that have stepped back do
// not stay where they are then.
func TestRaiseInherited(t *testing.T) {
	if !mayLeaveIdle() {
		t.Skip("no right to leave SCHED_IDLE: nothing steps back")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := ownSchedulers(t)
	end := make(chan struct{})
	defer close(end)
	undo := new(Tracer).raise()
	inherited := 0
	for range 100 {
		go func() { // which takes a thread for itself, and never gives it back
			runtime.LockOSThread()
			<-end
		}()
		time.Sleep(time.Millisecond)
		inherited = 0
		for tid, s := range ownSchedulers(t) {
			if _, old := before[tid]; !old && s.policy == unix.SCHED_IDLE {
				inherited++
			}
		}
		if inherited >= 3 {
			break
		}
	}
	undo()
	if inherited == 0 {
		t.Fatal("no thread was begun in the pause")
	}
	for tid, s := range ownSchedulers(t) {
		if s.policy == unix.SCHED_IDLE {
			t.Errorf("thread %d is left with SCHED_IDLE; %d threads inherited it", tid, inherited)
		}
	}
}
