package engine

import (
	"context"
	"errors"
	"time"

	"hotpatch/internal/procfs"
	"hotpatch/internal/unwind"
	"hotpatch/ptrace"
)

// ThreadStack is the call chain of one thread.
type ThreadStack struct {
	TID      int    `json:"thread"`
	Name     string `json:"name"`
	Complete bool   `json:"complete"`      // the chain goes down to where the thread began
	Why      string `json:"why,omitempty"` // why it does not
	Chain    []Call `json:"chain"`         // innermost first
}

// Stacks walks the stacks of all threads of a process, one thread after the
// other: each is stopped only while it is walked. req's PID, Timeout and Waiting
// are used.
func Stacks(ctx context.Context, req Request) ([]ThreadStack, error) {
	ctx, cancel := context.WithTimeout(ctx, req.Timeout)
	defer cancel()
	t, err := open(ctx, req.PID, true, req.Waiting)
	if err != nil {
		return nil, err
	}
	defer t.close()
	if err := t.resolve(nil); err != nil {
		return nil, err
	}
	u := unwind.New(t.space, t.mem)
	u.Stub = t.isSlot
	u.Prepare() // a module without tables ends a walk, which says so
	tids, err := t.proc.Tasks()
	if err != nil {
		return nil, err
	}
	stacks := make([]ThreadStack, 0, len(tids))
	err = ptrace.Run(t.proc, func(tr *ptrace.Tracer) error {
		for _, tid := range tids {
			maps, err := t.proc.Maps()
			if err != nil {
				return err
			}
			s, err := t.stackOf(tr, u, tid, maps)
			if errors.Is(err, ptrace.ErrGone) {
				continue
			}
			if err != nil {
				return err
			}
			stacks = append(stacks, s)
		}
		return nil
	})
	return stacks, err
}

func (t *target) stackOf(tr *ptrace.Tracer, u *unwind.Unwinder, tid int, maps []procfs.Map) (ThreadStack, error) {
	const limit = 500 * time.Millisecond
	s := ThreadStack{TID: tid, Chain: []Call{}}
	s.Name, _ = t.proc.Comm(tid)
	u.SetMaps(maps)
	th, err := tr.Seize(tid)
	if err != nil {
		return s, err
	}
	if err := tr.Stop(th, limit); err != nil {
		if errors.Is(err, ptrace.ErrTimeout) {
			s.Why = "it does not stop (uninterruptible sleep)"
			return s, nil
		}
		return s, err
	}
	const maxFrames = 4096
	walk := u.Walk(unwindRegs(&th.Regs), maxFrames)
	if err := th.Detach(); err != nil && !errors.Is(err, ptrace.ErrGone) {
		return s, err
	}
	u.Describe(&walk)
	s.Complete, s.Why, s.Chain = walk.Complete, walk.Why, chainOf(&walk)
	return s, nil
}
