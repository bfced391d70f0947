package inject

import (
	"errors"
	"fmt"
	"os"

	"hotpatch/internal/procfs"
	"hotpatch/ptrace"
)

// CleanStack clears the unused part of the agent's stack: what the loader left
// there in calls that have returned, such as addresses in libraries. The C
// library gives the same stack to the next agent. The agent's thread is stopped
// for it; no other one is.
func (a *Agent) CleanStack(t *ptrace.Tracer) error {
	l := a.l
	tids, err := l.proc.Tasks()
	if err != nil {
		return err
	}
	for _, tid := range tids {
		if !l.isTID(tid, a.tid) {
			continue
		}
		th, err := t.Seize(tid)
		if err == nil {
			err = t.Stop(th, l.stopLimit)
		}
		if errors.Is(err, ptrace.ErrGone) {
			return nil
		}
		if errors.Is(err, ptrace.ErrTimeout) {
			return l.late("its thread does not stop")
		}
		if err != nil {
			return err
		}
		err = l.clearBelow(tid, th)
		return errors.Join(err, th.Detach())
	}
	return nil
}

// clearBelow writes zeros to the pages that exist below a thread's stack pointer.
// Precondition: the thread is stopped. A thread that is not in hotpatch's own
// code, but in a signal handler, is left alone.
func (l *Loader) clearBelow(tid int, th *ptrace.Thread) error {
	if !l.inOurCode(th.Regs.Rip) {
		return nil
	}
	maps, err := l.proc.Maps()
	if err != nil {
		return err
	}
	const page, redZone = 0x1000, 128
	var stack procfs.Map
	for _, m := range maps {
		if m.Start <= th.Regs.Rsp && th.Regs.Rsp < m.End {
			stack = m
		}
	}
	if lowest := l.region.Base + tpOffset + tcbSize; stack.Start < lowest && lowest <= th.Regs.Rsp && th.Regs.Rsp <= l.region.Base+regionSize {
		stack.Start = lowest // the worker's, in the mapping that holds what it works with
	}
	end := (th.Regs.Rsp - redZone) &^ 7
	if stack.End == 0 || end <= stack.Start {
		return nil
	}
	f, err := l.proc.OpenRel(fmt.Sprintf("task/%d/pagemap", tid), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	entries := make([]byte, 8*((end-stack.Start+page-1)/page))
	if _, err := f.ReadAt(entries, int64(stack.Start/page*8)); err != nil {
		return fmt.Errorf("read which pages of a stack exist: %w", err)
	}
	zero := make([]byte, page)
	for i := 0; i*8 < len(entries); i++ {
		const present, swapped = 1 << 63, 1 << 62
		if le.Uint64(entries[8*i:])&(present|swapped) == 0 {
			continue
		}
		at := stack.Start + uint64(i)*page
		if err := l.mem.WriteAt(zero[:min(page, end-at)], at); err != nil {
			return err
		}
	}
	return nil
}
