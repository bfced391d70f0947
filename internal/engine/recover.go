package engine

import (
	"bytes"
	"context"
	"fmt"

	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
	"hotpatch/internal/quiesce"
	"hotpatch/ptrace"
)

// recover finishes or undoes what a hotpatch that was killed has left.
func (t *target) recover(ctx context.Context) error {
	if !t.unsettled() {
		return nil
	}
	// The agent of a hotpatch that was killed takes its library out, now or some
	// seconds later: better before anything is decided.
	loader, err := t.loader()
	if err != nil {
		return err
	}
	if err := loader.Dismiss(); err != nil {
		return err
	}
	if t.ledger.Txn != nil {
		if err := t.settle(ctx); err != nil {
			return err
		}
	}
	// A library that was being loaded when hotpatch died has been unloaded by
	// its agent, or was never loaded.
	l := t.ledger.Clone()
	changed := false
	for i := 0; i < len(l.Patches); {
		if l.Patches[i].State != ledger.Loading {
			i++
			continue
		}
		if err := l.Forget(l.Patches[i].ID); err != nil {
			return err
		}
		changed = true
	}
	if !changed {
		return nil
	}
	return t.save(l)
}

// unsettled reports whether a hotpatch was killed in the middle.
func (t *target) unsettled() bool {
	for i := range t.ledger.Patches {
		if t.ledger.Patches[i].State == ledger.Loading {
			return true
		}
	}
	return t.ledger.Txn != nil
}

// foresee makes a dry run see the ledger as recover would leave it.
func (t *target) foresee() error {
	switch {
	case t.ledger.Txn == nil:
	case t.done:
		after := t.ledger.Txn.After.Clone()
		after.Generation = t.ledger.Generation
		t.ledger = after
	default:
		return &fault.Error{Kind: fault.Failed, Code: "unsettled", What: fmt.Sprintf("cannot plan for process %d", t.proc.PID()),
			Why:  "a hotpatch was killed in the middle of a change, which is still to be undone",
			Hint: "the next apply or revert without --dry-run does that first"}
	}
	return nil
}

// settle ends an open transaction: a committed one is finished, any other is
// undone.
func (t *target) settle(ctx context.Context) error {
	txn := t.ledger.Txn
	if t.done {
		return t.save(txn.After)
	}
	var written []ledger.Edit
	for _, e := range txn.Edits {
		live := make([]byte, len(e.Old))
		if err := t.mem.ReadAt(live, e.Addr); err != nil {
			return err
		}
		switch {
		case bytes.Equal(live, e.New):
			written = append(written, e)
		case !bytes.Equal(live, e.Old):
			return t.differs(e, live)
		}
	}
	if len(written) > 0 {
		c := change{edits: ledger.Inverse(written)}
		for _, e := range written {
			if e.Kind == ledger.Entry || e.Kind == ledger.Pad {
				r := quiesce.Range{Start: e.Addr, End: e.Addr + uint64(len(e.New)), Name: fmt.Sprintf("%#x", e.Addr)}
				c.pc = append(c.pc, r)
				c.stack = append(c.stack, r)
			}
		}
		err := t.trace(func(tr *ptrace.Tracer) error {
			_, err := t.commit(ctx, tr, c)
			return err
		})
		if err != nil {
			return err
		}
	}
	l := t.ledger.Clone()
	l.Txn = nil
	// The libraries that were to be used are mapped and were never called.
	for _, id := range txn.Patches {
		p, after := l.Patch(id), txn.After.Patch(id)
		if p != nil && p.State == ledger.Loading && after != nil {
			*p = *after
			p.State = ledger.Inert
			p.Replaced, p.Hooks = nil, ledger.Hooks{}
		}
	}
	return t.save(l)
}
