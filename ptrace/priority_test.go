package ptrace

import (
	"errors"
	"os"
	"runtime"
	"slices"
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

// ownStates gives the state of each thread of this program.
func ownStates(t *testing.T) map[int]state {
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

// TestRaise: in a pause, the calling thread goes first and the watching thread of the runtime
// may wake up late, as far as that is allowed; afterwards all is as before.
func TestRaise(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	self := unix.Gettid()
	before := ownStates(t)
	if len(before) < 3 {
		t.Fatalf("this program has only the threads %v", before)
	}
	watcher := ownThreads()[1]
	undo := raise()
	within := ownStates(t)
	undo()
	after := ownStates(t)

	raised := within[self].policy&^unix.SCHED_RESET_ON_FORK == unix.SCHED_FIFO
	if raised != (setScheduler(0, scheduler{policy: unix.SCHED_FIFO, priority: 1}) == 0) {
		t.Errorf("the calling thread has %+v", within[self])
	}
	if raised {
		_ = setScheduler(0, before[self].scheduler)
	}
	for tid, was := range before {
		want := was
		if mayDelay() && strconv.Itoa(tid) == watcher {
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

// TestWatcher: the thread that is told to be late is one that sleeps for short times.
func TestWatcher(t *testing.T) {
	watcher := ownThreads()[1]
	for deadline := time.Now().Add(10 * time.Second); ; {
		call, err := os.ReadFile("/proc/self/task/" + watcher + "/syscall")
		if err != nil {
			t.Fatal(err)
		}
		if nr, _, _ := strings.Cut(string(call), " "); nr == strconv.Itoa(unix.SYS_NANOSLEEP) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("thread %s is never seen in nanosleep, but in %s", watcher, call)
		}
	}
}

// TestRaiseInherited: a thread that was begun in a pause, by the watching thread, is as others
// afterwards.
func TestRaiseInherited(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	undo := raise()
	begun, end, ended := make(chan int), make(chan struct{}), make(chan struct{})
	before := ownThreads()
	for range 20 { // until one of them has a thread of its own that is new
		go func() {
			runtime.LockOSThread() // and never unlocks it: the thread ends
			if err := unix.Prctl(unix.PR_SET_TIMERSLACK, longSlack, 0, 0, 0); err != nil {
				t.Error(err)
			}
			begun <- unix.Gettid()
			<-end
			ended <- struct{}{}
		}()
	}
	var tids []int
	for range 20 {
		tids = append(tids, <-begun)
	}
	undo()
	fresh := 0
	for _, tid := range tids {
		if slices.Contains(before, strconv.Itoa(tid)) {
			continue
		}
		fresh++
		if s := ownStates(t)[tid]; mayDelay() && s.slack != strconv.Itoa(usualSlack) {
			t.Errorf("thread %d is left with %+v", tid, s)
		}
	}
	if fresh == 0 {
		t.Error("no thread was begun in the pause")
	}
	close(end)
	for range 20 {
		<-ended
	}
}
