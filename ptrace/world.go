package ptrace

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// World is a process all of whose threads are stopped.
type World struct {
	Threads []*Thread // in the order of their numbers
	Began   time.Time // when the first thread was interrupted

	tracer *Tracer
	undo   func()
}

// StopAll seizes and stops every thread. The pause begins with the first
// interrupt, after all threads are seized. A thread that does not stop within
// limit (uninterruptible sleep) ends the attempt: everything else is let go and
// the error is ErrTimeout, with the thread named. The next attempt takes it up
// again; until then see Tend.
//
// Until Resume, the garbage collector is off and the calling thread has
// real-time priority if it may have it: a resumed thread must not take the
// processor from the one that has others to resume.
func (t *Tracer) StopAll(limit time.Duration) (*World, error) {
	keepProcessor()
	if _, err := t.SeizeAll(); err != nil {
		t.DetachAll()
		return nil, err
	}
	w := &World{tracer: t}
	tasks, err := t.proc.OpenRel("task", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		t.DetachAll()
		return nil, err
	}
	stopAlarm, err := t.alarm(limit)
	if err != nil {
		tasks.Close()
		t.DetachAll()
		return nil, err
	}
	fd := int(tasks.Fd())
	unraise := raise()
	w.undo = func() {
		unraise()
		stopAlarm()
		tasks.Close()
	}
	w.Threads = t.order(make([]*Thread, 0, len(t.threads)+16))
	page := uintptr(0)
	for _, th := range w.Threads {
		if !th.stopped {
			page = placeRegs(&th.Regs, page)
		}
	}
	w.Began = time.Now()
	for {
		for _, th := range w.Threads {
			if err := th.Interrupt(); err != nil && !errors.Is(err, ErrGone) {
				return w.giveUp(err)
			}
		}
		if len(w.Threads) == 1 {
			w.Threads[0].expect(w.Began)
		}
		for _, th := range w.Threads {
			switch err := th.Wait(); {
			case err == nil, errors.Is(err, ErrGone):
			case errors.Is(err, ErrTimeout):
				return w.giveUp(fmt.Errorf("thread %d: %w", th.TID, ErrTimeout))
			default:
				return w.giveUp(err)
			}
		}
		// Threads that began meanwhile were begun by threads that were not
		// stopped yet; a pass that finds none proves that all are stopped.
		if t.nobodyElse(fd) {
			break
		}
		added, err := t.SeizeAll()
		if err != nil {
			return w.giveUp(err)
		}
		if added == 0 {
			break
		}
		w.Threads = t.order(w.Threads[:0])
	}
	w.Threads = slices.DeleteFunc(w.Threads, func(th *Thread) bool { return th.gone })
	return w, nil
}

// expect waits for the only thread of a process without giving the processor away, for
// expected at the most: that thread stops on another processor, and this one would fall
// asleep meanwhile and have to be woken. Of several threads, some need this processor.
func (th *Thread) expect(since time.Time) {
	for runtime.NumCPU() > 1 && !th.stopped && !th.gone && time.Since(since) < expected {
		th.poll()
	}
}

// expected is longer than a thread takes to stop that is running. One that has been woken
// may take longer, or be waiting for this very processor.
const expected = 30 * time.Microsecond

// nobodyElse reports whether the process surely has no other threads than those that
// are stopped: the links of its directory of threads are two more than its threads
// (proc_task_getattr, fs/proc/base.c), those included that have ended and not been
// removed yet. tasks is that directory.
func (t *Tracer) nobodyElse(tasks int) bool {
	return linksRaw(tasks) == uint64(len(t.threads))+2
}

// order appends the seized threads to list, in the order of their numbers: threads
// that are waited for in the order in which they were interrupted are waited for the
// shortest time.
func (t *Tracer) order(list []*Thread) []*Thread {
	for _, th := range t.threads {
		list = append(list, th)
	}
	slices.SortFunc(list, func(a, b *Thread) int { return a.TID - b.TID })
	return list
}

// giveUp ends a StopAll that cannot be finished. Threads that were asked to stop
// are waited for, until the alarm: nobody would let them go afterwards.
func (w *World) giveUp(err error) (*World, error) {
	for _, th := range w.tracer.threads {
		if th.asked {
			_ = th.Wait() // one that does not stop is left to Tend
		}
	}
	w.Resume()
	return nil, err
}

// Resume lets every thread go and gives the length of the pause.
func (w *World) Resume() time.Duration {
	// In the order in which they were stopped, which is the shortest way through the
	// kernel's lists, and with nothing to be looked up.
	for _, th := range w.Threads {
		if th.stopped && !th.dirty && request(unix.PTRACE_DETACH, th.TID, 0, uintptr(th.signal)) == 0 {
			th.gone, th.stopped = true, false
		}
	}
	pause := time.Since(w.Began)
	for _, th := range w.Threads {
		if th.gone {
			delete(w.tracer.threads, th.TID)
		}
	}
	if len(w.tracer.threads) > 0 { // whatever was in the way of that
		w.tracer.DetachAll()
		pause = time.Since(w.Began)
	}
	if w.undo != nil {
		w.undo()
		w.undo = nil
	}
	return pause
}
