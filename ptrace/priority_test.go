package ptrace

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// state is what a pause changes of a thread of this program.
type state struct {
	scheduler
	slack string // how late it may wake up, in nanoseconds; empty: not ours to see
}

// ownThreads gives the state of each thread of this program.
func ownThreads(t *testing.T) map[int]state {
	t.Helper()
	tids, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	list := map[int]state{}
	for _, entry := range tids {
		tid, err := strconv.Atoi(entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		slack, err := os.ReadFile("/proc/" + entry.Name() + "/timerslack_ns")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if s, errno := getScheduler(tid); errno == 0 {
			list[tid] = state{s, strings.TrimSpace(string(slack))}
		}
	}
	return list
}

// mayDelay reports whether this program may change how late its other threads wake up.
func mayDelay() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_NICE) != 0
}

// TestRaise: in a pause, the calling thread goes first and the other threads of this
// program may wake up late, as far as that is allowed; afterwards all is as before.
func TestRaise(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self := unix.Gettid()
	before := ownThreads(t)
	if len(before) < 3 {
		t.Fatalf("this program has only the threads %v", before)
	}
	undo := raise()
	within := ownThreads(t)
	undo()
	after := ownThreads(t)

	raised := within[self].policy&^unix.SCHED_RESET_ON_FORK == unix.SCHED_FIFO
	if raised != (setScheduler(0, scheduler{policy: unix.SCHED_FIFO, priority: 1}) == 0) {
		t.Errorf("the calling thread has %+v", within[self])
	}
	if raised {
		_ = setScheduler(0, before[self].scheduler)
	}
	for tid, was := range before {
		want := was
		if mayDelay() {
			want.slack = strconv.Itoa(longSlack)
		}
		if now, ok := within[tid]; ok && tid != self && now != want {
			t.Errorf("thread %d has %+v in the pause, want %+v", tid, now, want)
		}
		if now, ok := after[tid]; ok && now != was {
			t.Errorf("thread %d has %+v afterwards, and had %+v before", tid, now, was)
		}
	}
}

// TestRaiseInherited: threads that are begun in a pause are as others afterwards.
func TestRaiseInherited(t *testing.T) {
	if !mayDelay() {
		t.Skip("no CAP_SYS_NICE: nothing is inherited")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := ownThreads(t)
	end := make(chan struct{})
	defer close(end)
	undo := raise()
	inherited := 0
	for range 100 {
		go func() { // which takes a thread for itself, and never gives it back
			runtime.LockOSThread()
			<-end
		}()
		time.Sleep(time.Millisecond)
		inherited = 0
		for tid, s := range ownThreads(t) {
			if _, old := before[tid]; !old && s.slack == strconv.Itoa(longSlack) {
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
	want := before[unix.Gettid()]
	for tid, s := range ownThreads(t) {
		if s != want {
			t.Errorf("thread %d is left with %+v, want %+v; %d threads inherited", tid, s, want, inherited)
		}
	}
}
