package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
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

	memory   bool          // also look for stacks that are nobody's current one
	maxPause time.Duration // for one pause, 0: no limit
}

// pauseStats is what is known of the pauses afterwards.
type pauseStats struct {
	Tries   int           // pauses, the successful one included
	Pause   time.Duration // the successful one
	Longest time.Duration // the longest one
	Threads int
}

// stopLimit is how long the threads may take to stop at the most: one in uninterruptible
// sleep does not stop, and must not keep the others; nor must one that waits for a processor
// which others take, who is awaited by itself then, for latePatience.
const (
	stopLimit    = 250 * time.Millisecond
	latePatience = time.Second
)

// stopLimitFor is stopLimit for one of several tries on so many threads. It is short as long
// as late threads may be met one after the other.
func stopLimitFor(threads, try int) time.Duration {
	const early = 4
	first := 25*time.Millisecond + time.Duration(threads)*100*time.Microsecond
	return min(stopLimit, first<<min(max(try-early, 0), early))
}

// commit writes the edits at an instant when nobody is in the way. It tries
// until ctx is done; between tries everything runs. Faults: "threads-busy"
// (Busy, with the blockers), "max-pause" (Busy), "memory-differs" (Differs),
// "memory-shared" (Busy), "not-stopped" (Busy), "rollback" if old bytes could not be put back.
func (t *target) commit(ctx context.Context, tr *ptrace.Tracer, c change) (pauseStats, error) {
	var stats pauseStats
	g, err := t.newGate(c)
	if err != nil {
		return stats, err
	}
	defer g.close()
	kept := false // some thread is kept stopped for the next try
	defer func() {
		if kept {
			tr.DetachAll()
		}
	}()
	for pause := time.Millisecond; ; pause = min(pause*2, 100*time.Millisecond) {
		if !kept {
			other, err := t.proc.Sharer()
			if err != nil {
				return stats, err
			}
			if other != 0 {
				if !napAndTend(ctx, tr, pause) {
					return stats, t.shared(other)
				}
				continue
			}
		}
		if err := g.ready(); err != nil {
			return stats, err
		}
		stats.Tries++
		suspects, unsure, err := t.try(tr, g, &stats)
		kept = false
		if err == nil && len(suspects) == 0 {
			return stats, nil
		}
		if again := errors.Is(err, ptrace.ErrTimeout) || errors.Is(err, quiesce.ErrUnknownStack); err != nil {
			if !again {
				return stats, err
			}
			over := func() bool { return ctx.Err() != nil }
			if errors.Is(err, ptrace.ErrTimeout) && !over() {
				if kept = tr.Await(latePatience, over); kept {
					continue
				}
			}
			if !napAndTend(ctx, tr, pause) {
				return stats, t.notNow(err, stats.Tries)
			}
			continue
		}
		// Whoever is still there the second time is named with the call chain. What
		// only a walk can decide is not left undecided because time is over.
		if g.walker == nil && (unsure || stats.Tries > 1 || ctx.Err() != nil) && !errors.Is(ctx.Err(), context.Canceled) {
			if err := g.learn(); err != nil {
				return stats, err
			}
			continue
		}
		blockers := g.describe(suspects)
		if kept = g.escort(ctx, tr, suspects); kept {
			continue
		}
		if !g.settled(ctx, tr, suspects, pause) {
			if errors.Is(ctx.Err(), context.Canceled) {
				return stats, timedOut(ctx.Err())
			}
			if g.walker == nil { // the last look is for the call chains
				if err := g.learn(); err != nil {
					return stats, err
				}
				continue
			}
			return stats, t.busy(blockers, stats.Tries)
		}
	}
}

// napAndTend sleeps, and lets threads go that stop late. It gives false if the
// context is done.
func napAndTend(ctx context.Context, tr *ptrace.Tracer, d time.Duration) bool {
	for end := time.Now().Add(d); time.Now().Before(end); {
		tr.Tend()
		select {
		case <-ctx.Done():
			tr.Tend()
			return false
		case <-time.After(min(d, 5*time.Millisecond)):
		}
	}
	tr.Tend()
	return true
}

// maxBlockers is how many threads are named in a message.
const maxBlockers = 16

// try is one pause. It gives the threads in the way; none means that everything
// is written. unsure says that stacks must be walked to know. Nothing in here
// parses, opens a file, or waits for anything but the threads.
func (t *target) try(tr *ptrace.Tracer, g *gate, stats *pauseStats) (suspects []suspect, unsure bool, err error) {
	c := &g.c
	mem := ptrace.Paused(t.proc.PID(), t.mem)
	live := mem.NewBatch()
	for _, e := range c.edits {
		live.Add(e.Addr, len(e.Old))
	}
	suspects = make([]suspect, 0, maxBlockers)
	writes := runs(c.edits)

	_ = live.Read() // in vain: the next time it is faster
	g.rehearse()

	limit := stopLimitFor(g.threads, stats.Tries)
	if c.maxPause > 0 {
		limit = min(limit, c.maxPause)
	}
	world, err := tr.StopAll(limit)
	if err != nil {
		if limit == c.maxPause && errors.Is(err, ptrace.ErrTimeout) {
			err = t.tooLong(c.maxPause)
		}
		return nil, false, err
	}
	defer func() {
		pause := world.Resume()
		stats.Longest = max(stats.Longest, pause)
		if err == nil && len(suspects) == 0 {
			stats.Pause, stats.Threads = pause, len(world.Threads)
		}
	}()
	over := func() error {
		if c.maxPause > 0 && time.Since(world.Began) > c.maxPause {
			return t.tooLong(c.maxPause)
		}
		return nil
	}

	if suspects, unsure, err = g.judge(world, suspects); err != nil {
		return nil, false, err
	}
	if err := over(); err != nil {
		return nil, false, err
	}
	if g.words != nil && len(suspects) == 0 {
		hit, err := g.words.find(world, over)
		if err != nil {
			return nil, false, err
		}
		if hit != nil {
			suspects = append(suspects, suspect{hit: *hit})
		}
	}
	if len(suspects) > 0 {
		return suspects, unsure, nil
	}
	if err := live.Read(); err != nil {
		return nil, false, err
	}
	for i, e := range c.edits {
		if !bytes.Equal(live.Bytes(i), e.Old) {
			return nil, false, t.differs(e, bytes.Clone(live.Bytes(i)))
		}
	}
	write := func(b []byte, addr uint64) error { return force(world, mem, b, addr) }
	for i := range writes {
		if err := write(writes[i].bytes, writes[i].addr); err != nil {
			return nil, false, t.rollback(write, c.edits[:writes[i].end], err)
		}
	}
	err = live.Read()
	for i, e := range c.edits {
		if err != nil || !bytes.Equal(live.Bytes(i), e.New) {
			return nil, false, t.rollback(write, c.edits, errors.Join(err, fmt.Errorf("the bytes read back at %#x are not those written", e.Addr)))
		}
	}
	if c.commitAt != 0 {
		if err := write(c.commit, c.commitAt); err != nil {
			return nil, false, t.rollback(write, c.edits, err)
		}
	}
	return nil, false, nil
}

// run is what several edits write in one go: they follow each other, in one page and
// without a gap, as the words of an island do. Each of them is wholly written or not,
// as if it were written by itself: the kernel copies page by page.
type run struct {
	addr  uint64
	bytes []byte
	end   int // index of the first edit behind it
}

// runs puts edits together, in the order in which they are to be written.
func runs(edits []ledger.Edit) []run {
	const page = 4096
	list := make([]run, 0, len(edits))
	for i, e := range edits {
		if n := len(list); n > 0 {
			r := &list[n-1]
			next := r.addr + uint64(len(r.bytes))
			if e.Addr == next && e.Kind == edits[i-1].Kind && (next+uint64(len(e.New))-1)/page == r.addr/page {
				r.bytes, r.end = append(r.bytes, e.New...), i+1
				continue
			}
		}
		list = append(list, run{e.Addr, bytes.Clone(e.New), i + 1})
	}
	return list
}

// notNow is the refusal for a process that could not be stopped and judged until
// the timeout.
func (t *target) notNow(err error, tries int) error {
	return &fault.Error{Kind: fault.Busy, Code: "not-stopped", What: fmt.Sprintf("cannot change process %d now", t.proc.PID()),
		Why: fmt.Sprintf("its threads could not all be stopped and looked at; tried %d times", tries), Err: err,
		Hint: "try again; a thread may be waiting in the kernel (state D) for a disk or a vfork child, or for a processor that others take, or begin and end too fast"}
}

// shared is the refusal for a process whose memory another one runs in: that one
// is not stopped with it.
func (t *target) shared(other int) error {
	name := "?"
	if p, err := procfs.Open(other); err == nil {
		name, _ = p.Comm(0)
		p.Close()
	}
	return &fault.Error{Kind: fault.Busy, Code: "memory-shared", What: fmt.Sprintf("cannot change process %d now", t.proc.PID()),
		Why:  fmt.Sprintf("process %d (%s) runs in the same memory, and is not stopped with it", other, name),
		Hint: "try again when it has ended or runs another program (a child of vfork, or of clone with CLONE_VM)"}
}

// tooLong is the refusal for a pause that would be longer than --max-pause. It is
// final: the next try would stop the same threads and look through the same stacks.
func (t *target) tooLong(limit time.Duration) error {
	return &fault.Error{
		Kind: fault.Busy, Code: "max-pause", What: fmt.Sprintf("cannot change process %d", t.proc.PID()),
		Why:  fmt.Sprintf("its threads would be stopped for longer than %v", limit),
		Hint: "allow more with --max-pause, or try again when the machine is less busy",
	}
}

// force writes through /proc/PID/mem, or through a stopped thread where the
// kernel forbids that (proc_mem.force_override).
func force(w *ptrace.World, mem *ptrace.Memory, b []byte, addr uint64) error {
	err := mem.WriteAt(b, addr)
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
func (t *target) busy(blockers []Blocker, tries int) error {
	var why []string
	hint := ""
	for i := range blockers {
		b := &blockers[i]
		why = append(why, b.String())
		if hint == "" {
			hint = b.Hint
		}
	}
	return &fault.Error{
		Kind: fault.Busy, Code: "threads-busy",
		What: fmt.Sprintf("cannot change process %d now", t.proc.PID()),
		Why:  fmt.Sprintf("%s; tried %d times", strings.Join(why, "; "), tries), Details: blockers,
		Hint: hint + "; try again, or give it more time with --timeout",
	}
}

// String describes a blocker with its call chain in one line.
func (b *Blocker) String() string {
	if b.TID == 0 {
		return fmt.Sprintf("the word %v at %v leads into %s", b.Addr, b.At, b.Function)
	}
	verb := "is in"
	switch quiesce.Where(b.Where) {
	case quiesce.OnStack:
		verb = "will return into"
	case quiesce.InRegister:
		verb = "seems to return, by way of a register, into"
	}
	s := fmt.Sprintf("thread %d (%s) %s %s", b.TID, b.Thread, verb, b.Function)
	if d := time.Since(b.Since); d >= time.Millisecond {
		s += fmt.Sprintf(" for at least %v", d.Round(time.Millisecond))
	}
	const most = 12
	var chain []string
	for i, c := range b.Chain {
		if i == most {
			chain = append(chain, fmt.Sprintf("(%d more)", len(b.Chain)-i))
			break
		}
		name := c.Function
		if name == "" {
			name = c.PC.String()
		}
		chain = append(chain, c.Module+"!"+name)
	}
	if len(chain) > 0 {
		s += " (" + strings.Join(chain, " < ") + ")"
	}
	return s
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
