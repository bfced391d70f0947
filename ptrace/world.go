package ptrace

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Visitor looks at the threads that StopAll has stopped.
type Visitor struct {
	// Judge is called on the tracer's thread, with each thread that Clear has not
	// cleared.
	Judge func(*Thread) error
	// Clear may be nil. It reports whether Judge need not look at a thread, and is
	// called on another processor, if there is one, for as many threads as it gets
	// to while Judge looks at the others. The last call may go on after StopAll and
	// Resume have returned, so it must use nothing that others change or close.
	Clear func(tid int, r *Regs) bool
}

// World is a process all of whose threads are stopped.
type World struct {
	Threads []*Thread
	Began   time.Time // when the first thread was interrupted

	tracer *Tracer
	order  []*Thread
	undo   func()
	aide   *aide
}

// StopAll seizes and stops every thread. The pause begins with the first
// interrupt, after all threads are seized. A thread that does not stop within
// limit (uninterruptible sleep) ends the attempt: everything else is let go and
// the error is ErrTimeout, with the thread named. The next attempt takes it up
// again; until then see Tend.
//
// Each stopped thread is judged once (see Visitor). An error of the judge ends the
// attempt. Threads may end afterwards, by a SIGKILL.
//
// Until Resume, the garbage collector is off and the calling thread has
// real-time priority if it may have it: a resumed thread must not take the
// processor from the one that has others to resume.
func (t *Tracer) StopAll(limit time.Duration, visit Visitor) (*World, error) {
	if _, err := t.SeizeAll(); err != nil {
		t.DetachAll()
		return nil, err
	}
	w := &World{tracer: t, Threads: make([]*Thread, 0, len(t.threads)+16)}
	clear(w.Threads[:cap(w.Threads)]) // it is in memory when the pause begins
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
	raised, unraise := raise()
	w.undo = func() {
		unraise()
		stopAlarm()
		tasks.Close()
	}
	if raised && visit.Judge != nil && len(t.threads) >= worthAnAide {
		w.aide = callAide(len(t.threads), visit.Clear)
	}

	order := t.order(make([]*Thread, 0, len(t.threads)+16))
	w.order = order
	w.Began = time.Now()
	for {
		late := 0 // threads one after the other that had not stopped when they were looked at
		for i, th := range order {
			if err := th.Interrupt(); err != nil && !errors.Is(err, ErrGone) {
				return w.giveUp(err)
			}
			if w.aide == nil || i < lag || late == enoughLate {
				continue
			}
			if th := order[i-lag]; th.seenBy != w {
				if !th.poll() {
					late++
					continue
				}
				late = 0
				if w.aide.publish(th) {
					th.seenBy = w
				}
			}
		}
		for _, th := range order {
			err := th.Wait()
			if err == nil && visit.Judge != nil && th.seenBy != w {
				th.seenBy = w
				if w.aide == nil || !w.aide.publish(th) {
					th.item, err = nil, visit.Judge(th)
				}
			}
			switch {
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
		order = t.order(order[:0])
		w.order = order
	}
	if w.aide != nil {
		w.aide.catchUp()
	}
	for _, th := range slices.Backward(order) { // the aide comes from the front
		if th.gone {
			continue
		}
		w.Threads = append(w.Threads, th)
		if th.item != nil && !th.item.clears() {
			if err := visit.Judge(th); err != nil {
				return w.giveUp(err)
			}
		}
	}
	if w.aide != nil {
		w.aide.judged()
	}
	return w, nil
}

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

// lag is after how many further threads a thread that was interrupted is looked at for
// the first time, if there is an aide to give it to: most have stopped by then.
const lag = 12

// enoughLate is after how many threads that had not stopped by then looking is given up:
// the machine is busy, and it only takes time.
const enoughLate = 4

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
	for _, th := range w.order {
		if th.stopped && !th.dirty && request(unix.PTRACE_DETACH, th.TID, 0, uintptr(th.signal)) == 0 {
			th.gone, th.stopped = true, false
		}
	}
	pause := time.Since(w.Began)
	for _, th := range w.order {
		if th.gone {
			delete(w.tracer.threads, th.TID)
		}
	}
	if len(w.tracer.threads) > 0 { // whatever was in the way of that
		w.tracer.DetachAll()
		pause = time.Since(w.Began)
	}
	if w.aide != nil {
		w.aide.end()
		w.aide = nil
	}
	if w.undo != nil {
		w.undo()
		w.undo = nil
	}
	return pause
}
