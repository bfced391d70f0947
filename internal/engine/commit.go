package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
	"hotpatch/internal/procfs"
	"hotpatch/internal/quiesce"
	"hotpatch/ptrace"
)

// change is what the pause does: edits, who must not be where meanwhile, and
// the word that makes it final.
type change struct {
	edits []ledger.Edit
	pc    []quiesce.Range // nobody may be inside
	stack []quiesce.Range // nobody may return inside

	commitAt uint64 // address of the commit word; 0: none
	commit   []byte
}

// pauseStats is what is known of the pauses afterwards.
type pauseStats struct {
	Tries   int           // pauses, the successful one included
	Pause   time.Duration // of the successful one
	Threads int
}

// stopLimit is how long the threads may take to stop: one in uninterruptible
// sleep does not stop, and must not keep the others.
const stopLimit = 250 * time.Millisecond

// commit writes the edits at an instant when nobody is in the way. It tries
// until ctx is done; between tries everything runs. Faults: "threads-busy"
// (Busy, with the blockers), "memory-differs" (Differs), "not-stopped" (Busy),
// "rollback" if old bytes could not be put back.
func (t *target) commit(ctx context.Context, tr *ptrace.Tracer, c change) (pauseStats, error) {
	var stats pauseStats
	for pause := time.Millisecond; ; pause = min(pause*2, 100*time.Millisecond) {
		maps, err := t.proc.Maps()
		if err != nil {
			return stats, err
		}
		stats.Tries++
		blockers, err := t.try(tr, c, maps, &stats)
		if err != nil || len(blockers) == 0 {
			return stats, err
		}
		select {
		case <-ctx.Done():
			return stats, t.busy(blockers, stats.Tries)
		case <-time.After(pause):
		}
	}
}

// maxBlockers is how many threads are named in a message.
const maxBlockers = 16

// try is one pause. It gives the threads in the way; none means that everything
// is written. Nothing in here parses, opens a file, or waits for anything but
// the threads.
func (t *target) try(tr *ptrace.Tracer, c change, maps []procfs.Map, stats *pauseStats) (blockers []quiesce.Blocker, err error) {
	check := quiesce.New(c.pc, c.stack, maps, t.mem)
	buf := make([]byte, ledger.MaxSite)
	blockers = make([]quiesce.Blocker, 0, maxBlockers)

	world, err := tr.StopAll(stopLimit)
	if err != nil {
		if errors.Is(err, ptrace.ErrTimeout) {
			return nil, &fault.Error{Kind: fault.Busy, Code: "not-stopped", What: fmt.Sprintf("cannot stop process %d", t.proc.PID()),
				Why: "a thread is in uninterruptible sleep (state D)", Err: err, Hint: "try again; it may be waiting for a disk or a vfork child"}
		}
		return nil, err
	}
	defer func() {
		pause := world.Resume()
		if err == nil && len(blockers) == 0 {
			stats.Pause, stats.Threads = pause, len(world.Threads)
		}
	}()

	for _, th := range world.Threads {
		b, err := check.Check(quiesce.Thread{
			TID: th.TID, PC: th.Regs.Rip, SP: th.Regs.Rsp, FS: th.Regs.FsBase,
			Main: th.TID == t.proc.PID(), InSyscall: th.Regs.InSyscall(),
		})
		if err != nil {
			return nil, err
		}
		if b != nil && len(blockers) < maxBlockers {
			blockers = append(blockers, *b)
		}
	}
	if len(blockers) > 0 {
		return blockers, nil
	}
	for _, e := range c.edits {
		live := buf[:len(e.Old)]
		if err := t.mem.ReadAt(live, e.Addr); err != nil {
			return nil, err
		}
		if !bytes.Equal(live, e.Old) {
			return nil, t.differs(e, bytes.Clone(live))
		}
	}
	write := func(b []byte, addr uint64) error { return t.force(world, b, addr) }
	for i, e := range c.edits {
		if err := write(e.New, e.Addr); err != nil {
			return nil, t.rollback(write, c.edits[:i+1], err)
		}
	}
	for _, e := range c.edits {
		live := buf[:len(e.New)]
		if err := t.mem.ReadAt(live, e.Addr); err != nil || !bytes.Equal(live, e.New) {
			return nil, t.rollback(write, c.edits, errors.Join(err, fmt.Errorf("the bytes read back at %#x are not those written", e.Addr)))
		}
	}
	if c.commitAt != 0 {
		if err := write(c.commit, c.commitAt); err != nil {
			return nil, t.rollback(write, c.edits, err)
		}
	}
	return nil, nil
}

// force writes through /proc/PID/mem, or through a stopped thread where the
// kernel forbids that (proc_mem.force_override).
func (t *target) force(w *ptrace.World, b []byte, addr uint64) error {
	err := t.mem.WriteAt(b, addr)
	if err != nil && len(w.Threads) > 0 {
		if perr := w.Threads[0].Poke(b, addr); perr == nil {
			return nil
		}
	}
	return err
}

// rollback puts the old bytes back, last edit first, while everything is still
// stopped.
func (t *target) rollback(write func([]byte, uint64) error, done []ledger.Edit, cause error) error {
	var left []string
	for i := len(done) - 1; i >= 0; i-- {
		live := make([]byte, len(done[i].Old))
		err := write(done[i].Old, done[i].Addr)
		if err == nil {
			err = t.mem.ReadAt(live, done[i].Addr)
		}
		if err != nil || !bytes.Equal(live, done[i].Old) {
			left = append(left, fmt.Sprintf("%#x", done[i].Addr))
		}
	}
	if len(left) > 0 {
		return &fault.Error{Kind: fault.Differs, Code: "rollback", What: fmt.Sprintf("process %d is in doubt", t.proc.PID()),
			Why: fmt.Sprintf("writing failed, and the old bytes could not be put back at %v", left), Err: cause,
			Hint: "restart the process as soon as possible"}
	}
	return &fault.Error{Kind: fault.Failed, Code: "write-failed", What: fmt.Sprintf("cannot patch process %d", t.proc.PID()),
		Why: "writing its memory failed; the old bytes are back", Err: cause}
}

// differs is the refusal for a site that holds neither what hotpatch expects nor
// anything that it wrote.
func (t *target) differs(e ledger.Edit, live []byte) error {
	return &fault.Error{
		Kind: fault.Differs, Code: "memory-differs",
		What: fmt.Sprintf("cannot change process %d", t.proc.PID()), Where: t.place(e.Addr),
		Why:  fmt.Sprintf("there are the bytes % x where % x should be", live, e.Old),
		Hint: "somebody else has written there (a debugger's breakpoint, a uprobe, another patcher); it must be taken out first",
	}
}

// busy is the refusal for threads that did not leave in time.
func (t *target) busy(blockers []quiesce.Blocker, tries int) error {
	why := ""
	for i := range blockers {
		b := &blockers[i]
		b.Thread, _ = t.proc.Comm(b.TID)
		if i > 0 {
			why += "; "
		}
		switch b.Where {
		case quiesce.AtPC:
			why += fmt.Sprintf("thread %d (%s) is at %s", b.TID, b.Thread, t.place(b.Addr))
		case quiesce.OnStack:
			why += fmt.Sprintf("thread %d (%s) will return to %s (stack word %#x)", b.TID, b.Thread, t.place(b.Addr), b.At)
		}
	}
	return &fault.Error{
		Kind: fault.Busy, Code: "threads-busy",
		What: fmt.Sprintf("cannot change process %d now", t.proc.PID()),
		Why:  fmt.Sprintf("%s; tried %d times", why, tries), Details: blockers,
		Hint: "try again, or give it more time with --timeout",
	}
}

// place describes an address: module!function+offset.
func (t *target) place(addr uint64) string {
	if t.space != nil {
		if s, off, ok := t.space.FuncAt(addr); ok {
			return fmt.Sprintf("%s!%s+%#x (%#x)", s.Module.Name, s.Demangled(), off, addr)
		}
		if m := t.space.ModuleAt(addr); m != nil {
			return fmt.Sprintf("%s+%#x (%#x)", m.Name, m.Vaddr(addr), addr)
		}
	}
	return fmt.Sprintf("%#x", addr)
}
