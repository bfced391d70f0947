package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hotpatch/inject"
	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
	"hotpatch/internal/quiesce"
	"hotpatch/ptrace"
)

// Revert takes patches out of a process, all in one pause. names are patch
// names, or "name@version"; all means every patch. Reverting what is not applied
// is fault "not-applied", unless all is set.
func Revert(ctx context.Context, req Request, names []string, all bool) (*RevertResult, error) {
	ctx, cancel := context.WithTimeout(ctx, req.Timeout)
	defer cancel()
	t, err := open(ctx, req.PID, true, req.Waiting)
	if err != nil {
		return nil, err
	}
	defer t.close()
	if !req.DryRun {
		if err := t.recover(ctx); err != nil {
			return nil, err
		}
	}
	ids, err := t.selectPatches(names, all)
	if err != nil {
		return nil, err
	}
	result := t.revertResult(ids)
	if len(ids) == 0 {
		result.State = "nothing-applied"
		return result, nil
	}
	// Symbols are for messages only: without them there are addresses.
	_ = t.resolve(nil)
	r := &reversion{t: t, ids: ids}
	if err := r.plan(); err != nil {
		return result, err
	}
	result.Sites = len(r.edits)
	if req.DryRun {
		result.State = "would-revert"
		return result, nil
	}
	began := time.Now()
	err = ptrace.Run(t.proc, func(tr *ptrace.Tracer) error {
		stats, warning, err := r.run(ctx, tr)
		result.setPause(stats)
		if warning != nil {
			result.Notes = append(result.Notes, warning.Error())
		}
		return err
	})
	result.Seconds = time.Since(began).Seconds()
	if err != nil {
		result.State = "failed"
	}
	return result, err
}

// selectPatches finds the applied patches that are meant, the last applied first.
func (t *target) selectPatches(names []string, all bool) ([]uint64, error) {
	var ids []uint64
	used := make([]bool, len(names))
	for i := len(t.ledger.Patches) - 1; i >= 0; i-- {
		p := &t.ledger.Patches[i]
		if p.State != ledger.Active {
			continue
		}
		meant := all
		for k, n := range names {
			if n == p.Name || n == patchLabel(p.Name, p.Version) {
				meant, used[k] = true, true
			}
		}
		if meant {
			ids = append(ids, p.ID)
		}
	}
	var missing fault.List
	for k, n := range names {
		if !used[k] {
			missing = append(missing, &fault.Error{Kind: fault.Unfit, Code: "not-applied", What: fmt.Sprintf("cannot revert %q", n),
				Where: fmt.Sprintf("process %d", t.proc.PID()), Why: "no patch of that name is applied", Hint: "hotpatch list --pid " + fmt.Sprint(t.proc.PID()) + " shows what is"})
		}
	}
	return ids, missing.ErrOrNil()
}

// reversion is patches on their way out of the target.
type reversion struct {
	t     *target
	ids   []uint64
	after *ledger.Ledger
	edits []ledger.Edit
}

// plan works out the edits and compares them with memory.
func (r *reversion) plan() error {
	r.after = r.t.ledger.Clone()
	var err error
	if r.edits, err = r.after.Pop(r.ids); err != nil {
		return err
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	for _, id := range r.ids {
		r.after.Patch(id).RevertedAt = now
	}
	for _, e := range r.edits {
		live := make([]byte, len(e.Old))
		if err := r.t.mem.ReadAt(live, e.Addr); err != nil {
			return err
		}
		if !slices.Equal(live, e.Old) {
			return r.t.differs(e, live)
		}
	}
	return nil
}

func (r *reversion) run(ctx context.Context, tr *ptrace.Tracer) (stats pauseStats, warning, err error) {
	if err := r.hooks(tr, "before-revert", func(h ledger.Hooks) []uint64 { return h.BeforeRevert }); err != nil {
		return stats, nil, err
	}
	t := r.t
	before := t.ledger.Clone()
	before.Txn = &ledger.Txn{Verb: ledger.Revert, Patches: r.ids, Edits: r.edits, Started: time.Now().UTC(), After: r.after}
	if err := r.save(tr, before); err != nil {
		return stats, nil, err
	}
	c := t.pending(r.edits)
	for _, e := range r.edits {
		if e.Kind != ledger.Entry && e.Kind != ledger.Pad {
			continue
		}
		rg := quiesce.Range{Start: e.Addr, End: e.Addr + uint64(len(e.Old)), Name: fmt.Sprintf("%#x", e.Addr)}
		c.pc, c.stack = append(c.pc, rg), append(c.stack, rg)
	}
	stats, err = t.commit(ctx, tr, c)
	if err != nil {
		undone := t.ledger.Clone()
		undone.Txn = nil
		return stats, nil, errors.Join(err, t.save(undone))
	}
	if err := t.save(r.after); err != nil {
		return stats, fmt.Errorf("the patches are out, but the ledger could not be finished (the next command will): %w", err), nil
	}
	if err := r.hooks(tr, "after-revert", func(h ledger.Hooks) []uint64 { return h.AfterRevert }); err != nil {
		return stats, fmt.Errorf("the patches are out, but an after-revert hook was not run to the end: %w", err), nil
	}
	return stats, nil, nil
}

// save writes the ledger; if that takes more room than there is, an agent maps it.
func (r *reversion) save(tr *ptrace.Tracer, l *ledger.Ledger) error {
	err := r.t.saveWith(l, nil)
	if fault.CodeOf(err) != "ledger-full" {
		return err
	}
	return r.withAgent(tr, func(a *inject.Agent) error { return r.t.saveWith(l, a) })
}

// hooks runs hooks of the patches, if they have any.
func (r *reversion) hooks(tr *ptrace.Tracer, when string, of func(ledger.Hooks) []uint64) error {
	any := false
	for _, id := range r.ids {
		any = any || len(of(r.t.ledger.Patch(id).Hooks)) > 0
	}
	if !any {
		return nil
	}
	return r.withAgent(tr, func(a *inject.Agent) error {
		for _, id := range r.ids {
			p := r.t.ledger.Patch(id)
			if err := runHooks(a, of(p.Hooks), p.Name, when); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *reversion) withAgent(tr *ptrace.Tracer, f func(*inject.Agent) error) error {
	loader, err := r.t.loader()
	if err != nil {
		return err
	}
	agent, err := loader.Start(tr)
	if err != nil {
		return err
	}
	return errors.Join(f(agent), agent.Close())
}
