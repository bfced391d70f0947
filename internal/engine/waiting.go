package engine

import (
	"context"
	"errors"
	"time"

	"hotpatch/internal/procfs"
	"hotpatch/ptrace"
)

// sleep says where a thread sleeps. Another one is never equal: a thread may have left
// and be back at the same place.
type sleep struct {
	call     procfs.Syscall
	switches uint64
}

// sleeps gives where a thread sleeps, if it does.
func (g *gate) sleeps(tid int) (s sleep, ok bool) {
	st, err := g.t.proc.Status(tid)
	if err != nil {
		return s, false
	}
	call, err := g.t.proc.Syscall(tid)
	return sleep{call, st.Switches}, err == nil && !call.Running
}

// settled waits after a failed try until another one can have another outcome: as
// long as every blocker sleeps where it slept, it cannot. It gives up when the
// context is done, and after pause if some blocker was running.
func (g *gate) settled(ctx context.Context, tr *ptrace.Tracer, suspects []suspect, pause time.Duration) bool {
	asleep := make(map[int]sleep, len(suspects))
	for _, s := range suspects {
		at, ok := g.sleeps(s.tid)
		if s.tid == 0 || !ok {
			return napAndTend(ctx, tr, pause)
		}
		asleep[s.tid] = at
	}
	for nap := 200 * time.Microsecond; napAndTend(ctx, tr, nap); nap = min(nap*2, 2*time.Millisecond) {
		for tid, was := range asleep {
			if now, ok := g.sleeps(tid); !ok || now != was {
				return true
			}
		}
	}
	return false
}

// escort follows the one thread that is in the way, if it waits in a system call,
// from system call to system call until it is in one outside of the functions that
// are replaced, and keeps it stopped there: so a loop that waits nearly always
// inside, for connections say, is met in the moment in which it does not.
// Everything else runs. It reports whether the thread was met; the next pause lets
// it go.
func (g *gate) escort(ctx context.Context, tr *ptrace.Tracer, suspects []suspect) bool {
	if len(suspects) != 1 || suspects[0].walk == nil || !suspects[0].walk.Complete {
		return false
	}
	const (
		once     = 100 * time.Millisecond // how often to look whether time is over
		most     = 10000                  // system calls made inside before it is given up
		patience = 50 * time.Millisecond  // until the thread sleeps again, after the last pause
	)
	s := &suspects[0]
	for began := time.Now(); ; {
		at, ok := g.sleeps(s.tid)
		if ok && at.call.Nr >= 0 {
			break
		}
		if ok || time.Since(began) > patience || !napAndTend(ctx, tr, time.Millisecond) {
			return false
		}
	}
	th, err := tr.Seize(s.tid)
	if err != nil {
		return false
	}
	if err := tr.Stop(th, stopLimit); err != nil {
		return false // settled lets it go when it stops
	}
	for calls := 0; calls < most && ctx.Err() == nil; {
		switch err := th.NextSyscall(once); {
		case errors.Is(err, ptrace.ErrTimeout):
			continue
		case err != nil:
			return false
		}
		if left, _, err := g.judgeOne(th); err == nil && left == nil {
			return true
		}
		calls++
	}
	_ = th.Detach()
	return false
}
