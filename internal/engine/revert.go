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
	if req.Begin != nil {
		req.Begin()
	}
	settle := func() error { return t.recover(ctx) }
	if req.DryRun {
		settle = t.foresee
	}
	if err := settle(); err != nil {
		return nil, err
	}
	ids, err := t.selectPatches(names, all, req.Unload)
	if err != nil {
		return nil, err
	}
	result := t.revertResult(ids)
	if len(ids) == 0 {
		result.State = "nothing-applied"
		if !req.Unload || req.DryRun {
			return result, nil
		}
		return result, t.unloadAll(req, names, all, result)
	}
	r := &reversion{t: t, req: &req, ids: ids}
	if err := r.plan(); err != nil {
		result.State = "refused"
		return result, err
	}
	result.Sites = len(r.edits) - len(r.done)
	if len(r.done) > 0 {
		result.Notes = append(result.Notes, fmt.Sprintf("%d places were as before already: their module was unloaded since", len(r.done)))
	}
	if req.DryRun {
		result.State = "would-revert"
		return result, nil
	}
	began := time.Now()
	err = t.trace(func(tr *ptrace.Tracer) error {
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
		return result, err
	}
	if req.Unload {
		err = t.unloadAll(req, names, all, result)
	}
	return result, err
}

// unloadAll unloads the libraries of the reverted patches that are meant.
func (t *target) unloadAll(req Request, names []string, all bool, result *RevertResult) error {
	return t.trace(func(tr *ptrace.Tracer) error {
		for _, p := range t.ledger.Clone().Patches {
			if p.State != ledger.Inert || !all && !meant(&p, names) {
				continue
			}
			why, err := t.unload(tr, p.ID, req.MaxSearch)
			if err != nil {
				return fmt.Errorf("%s is reverted, but its library could not be unloaded: %w", patchLabel(p.Name, p.Version), err)
			}
			if why == "" {
				result.Unloaded = append(result.Unloaded, patchLabel(p.Name, p.Version))
				continue
			}
			result.Kept = append(result.Kept, KeptState{patchLabel(p.Name, p.Version), why})
			l := t.ledger.Clone()
			l.Patch(p.ID).Kept = ledger.Clean(why)
			if err := t.save(l); err != nil {
				return err
			}
		}
		return nil
	})
}

// meant reports whether a patch is among names: by its name, or name@version.
func meant(p *ledger.Patch, names []string) bool {
	for _, n := range names {
		if n == p.Name || n == patchLabel(p.Name, p.Version) {
			return true
		}
	}
	return false
}

// selectPatches finds the applied patches that are meant, the last applied first.
//
// With inert set, it is enough that a patch of that name is still mapped.
func (t *target) selectPatches(names []string, all, inert bool) ([]uint64, error) {
	var ids []uint64
	used := make([]bool, len(names))
	for i := len(t.ledger.Patches) - 1; i >= 0; i-- {
		p := &t.ledger.Patches[i]
		active := p.State == ledger.Active
		for k, n := range names {
			used[k] = used[k] || (active || inert) && meant(p, []string{n})
		}
		if active && (all || meant(p, names)) {
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
	req   *Request
	ids   []uint64
	after *ledger.Ledger
	edits []ledger.Edit
	done  []uint64 // addresses of edits that need no writing
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
		r.after.Patch(id).Kept = "it was not asked to be unloaded"
	}
	for _, e := range r.edits {
		live := make([]byte, len(e.Old))
		err := r.t.mem.ReadAt(live, e.Addr)
		switch {
		case err == nil && slices.Equal(live, e.Old):
		case err == nil && slices.Equal(live, e.New), err != nil && !r.t.mapped(e.Addr):
			// Its module was unloaded, and may have been loaded again.
			r.done = append(r.done, e.Addr)
		case err != nil:
			return err
		default:
			// Symbols are for messages only: without them there are addresses.
			_ = r.t.resolve(nil)
			return r.t.differs(e, live)
		}
	}
	return nil
}

func (r *reversion) run(ctx context.Context, tr *ptrace.Tracer) (stats pauseStats, warning, err error) {
	if r.req.NoHooks {
		warning = errors.New("the hooks of the patches were not run")
	} else if err := r.hooks(tr, "before-revert", func(h ledger.Hooks) []uint64 { return h.BeforeRevert }); err != nil {
		return stats, nil, err
	}
	t := r.t
	before := t.ledger.Clone()
	before.Txn = &ledger.Txn{Verb: ledger.Revert, Patches: r.ids, Edits: r.edits, Started: time.Now().UTC(), After: r.after}
	if err := r.save(tr, before); err != nil {
		return stats, nil, err
	}
	c := t.pending(r.edits, r.req)
	c.edits = slices.DeleteFunc(slices.Clone(c.edits), func(e ledger.Edit) bool { return slices.Contains(r.done, e.Addr) })
	if r.req.Consistency != AtEntry {
		c.pc, c.stack = r.bodies(), r.bodies()
	}
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
	if r.req.NoHooks {
		return stats, warning, nil
	}
	if err := r.hooks(tr, "after-revert", func(h ledger.Hooks) []uint64 { return h.AfterRevert }); err != nil {
		return stats, fmt.Errorf("the patches are out, but: %w", err), nil
	}
	return stats, nil, nil
}

// bodies is the code that nobody may be in while the patches are taken out: that
// of their libraries, as far as they have a function in force.
func (r *reversion) bodies() []quiesce.Range {
	var out []quiesce.Range
	stack := r.t.ledger.Stacks()
	for _, id := range r.ids {
		p := r.t.ledger.Patch(id)
		inForce := false
		for _, k := range p.Replaced {
			cur, ok := ledger.Top(stack(k.Old))
			inForce = inForce || ok && cur.ID == id
		}
		if inForce {
			// All of it, the first byte included.
			out = append(out, quiesce.Range{Start: p.Lo - 1, End: p.Hi, Name: patchLabel(p.Name, p.Version), EndsInCall: true})
		}
	}
	return out
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
