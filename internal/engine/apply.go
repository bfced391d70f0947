package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"hotpatch/inject"
	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
	"hotpatch/internal/patchfile"
	"hotpatch/internal/quiesce"
	"hotpatch/ptrace"
)

// ToolVersion is the version of hotpatch that the ledger records.
var ToolVersion = "dev"

// Request says what apply or revert is to do to one process.
type Request struct {
	PID     int
	Timeout time.Duration // how long to wait for threads to leave
	DryRun  bool

	MaxPause   time.Duration // for one pause; a try that would take longer gives up at once. 0: no limit
	ScanMemory bool          // also look through memory for suspended stacks: coroutines, saved contexts
	Waiting    func()        // called once if another hotpatch has the process; may be nil
	Begin      func()        // called once before the process is touched; may be nil

	Consistency Consistency // for revert; apply has it in its options
	NoHooks     bool        // for revert: run no hooks of the patches

	// Unload is for revert: take the libraries out too, if nothing refers to them.
	// It pauses the process while its memory is looked through, MaxSearch at most.
	Unload    bool
	MaxSearch time.Duration
}

// Apply applies patches to a process, one after the other, each wholly or not
// at all; the first failure ends it. The results of those that were applied are
// given in any case.
func Apply(ctx context.Context, req Request, o Options, patches []*patchfile.Patch) ([]*ApplyResult, error) {
	if o.Name != "" {
		if err := patchfile.CheckName(o.Name); err != nil {
			return nil, err
		}
	}
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
	var results []*ApplyResult
	for _, p := range patches {
		r, err := t.apply(ctx, p, o, &req)
		if r != nil {
			results = append(results, r)
		}
		if err != nil {
			if len(patches) > 1 {
				err = fmt.Errorf("%s: %w", p.Path, err)
			}
			return results, err
		}
	}
	return results, nil
}

// apply applies one patch.
func (t *target) apply(ctx context.Context, p *patchfile.Patch, o Options, req *Request) (*ApplyResult, error) {
	plan, err := t.plan(p, o)
	if err != nil {
		if plan == nil {
			return nil, err
		}
		return t.applyResult(plan, "refused"), err
	}
	if plan.Already {
		return t.applyResult(plan, "already-applied"), nil
	}
	loader, err := t.loader()
	if err != nil {
		return t.applyResult(plan, "refused"), err
	}
	if req.DryRun {
		return t.applyResult(plan, "would-apply"), nil
	}
	result := t.applyResult(plan, "applied")
	began := time.Now()
	err = t.trace(func(tr *ptrace.Tracer) error {
		a := &application{t: t, tr: tr, req: req, plan: plan, loader: loader}
		stats, warning, err := a.run(ctx)
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

// application is one patch on its way into the target.
type application struct {
	t      *target
	tr     *ptrace.Tracer
	req    *Request
	plan   *Plan
	loader *inject.Loader

	agent   *inject.Agent
	id      uint64
	lib     *inject.Library
	bias    uint64
	islands []ledger.Island // mapped by this application
	reused  bool            // the library was mapped already
}

// run brings the patch into the target. Everything that it does before the
// commit is taken back if it fails. warning is what went wrong after the commit.
func (a *application) run(ctx context.Context) (stats pauseStats, warning, err error) {
	if a.agent, err = a.loader.Start(a.tr); err != nil {
		return stats, nil, err
	}
	a.agent.SetDeadline(deadline(ctx))
	c, err := a.load(ctx)
	if err != nil {
		return stats, nil, errors.Join(err, a.takeBack())
	}
	// Nothing calls the new code yet. The agent ends before the pause: it is
	// a thread of the target like any other. The C library gives its stack to the
	// next thread, which must not find there what the loader has left.
	if err := errors.Join(a.agent.CleanStack(a.tr), a.agent.Close()); err != nil {
		return stats, nil, err
	}
	stats, err = a.t.commit(ctx, a.tr, c)
	if err != nil {
		return stats, nil, errors.Join(err, a.abandon())
	}
	return stats, a.afterwards(), nil
}

// load does everything up to the pause.
func (a *application) load(ctx context.Context) (change, error) {
	t := a.t
	region, ok := a.loader.Region()
	if !ok {
		return change{}, errors.New("the agent runs without a region")
	}
	t.region = region
	if err := t.initLedger(a.agent); err != nil {
		return change{}, err
	}
	if err := a.loadLibrary(); err != nil {
		return change{}, err
	}
	if err := a.bind(); err != nil {
		return change{}, err
	}
	if !a.reused {
		if err := a.agent.Construct(a.lib); err != nil {
			return change{}, err
		}
	}
	if err := a.hooks(a.plan.Patch.Hooks.BeforeApply, "before-apply"); err != nil {
		return change{}, err
	}
	if err := ctx.Err(); err != nil {
		return change{}, timedOut(err)
	}
	return a.intend()
}

// deadline is when code that runs in the target must have ended.
func deadline(ctx context.Context) time.Time {
	d, _ := ctx.Deadline()
	return d
}

func timedOut(err error) error {
	if errors.Is(err, context.Canceled) {
		return &fault.Error{Kind: fault.Failed, Code: "interrupted", What: "cannot go on", Why: "hotpatch was interrupted by a signal; what was begun is taken back"}
	}
	return &fault.Error{Kind: fault.Busy, Code: "timeout", What: "cannot go on", Why: "the time given by --timeout is over", Hint: "give it more time with --timeout"}
}

// initLedger makes sure that there is a root page.
func (t *target) initLedger(agent *inject.Agent) error {
	page := make([]byte, ledger.RootSize)
	if err := t.mem.ReadAt(page, t.region.Root()); err != nil {
		return err
	}
	if _, err := ledger.ReadRoot(page); err != nil {
		return err
	}
	fresh := ledger.NewRoot()
	if string(page[:16]) == string(fresh[:16]) {
		return nil
	}
	return t.writeMem(fresh, t.region.Root())
}

// loadLibrary maps the patch library, or finds it mapped from an earlier time.
func (a *application) loadLibrary() error {
	t, p := a.t, a.plan.Patch
	l := t.ledger.Clone()
	if k := t.inert(p); k != nil {
		a.id, a.bias, a.reused = k.ID, k.Base, true
		a.lib = &inject.Library{Handle: k.Handle, Bias: k.Base, Lo: k.Lo, Hi: k.Hi}
		return nil
	}
	a.id = l.NextID()
	serial := l.Counter + 1
	l.Counter += inject.NearTries
	rec := a.record(ledger.Loading)
	l.Patches = append(l.Patches, rec)
	if err := t.saveWith(l, a.agent); err != nil {
		return err
	}
	lib, err := a.agent.LoadNear(a.plan.Name, p.Data, serial, a.plan.near())
	if err != nil {
		return err
	}
	a.lib, a.bias = lib, lib.Bias
	return nil
}

// inert finds the record of the same file whose library is still mapped.
func (t *target) inert(p *patchfile.Patch) *ledger.Patch {
	for i := range t.ledger.Patches {
		k := &t.ledger.Patches[i]
		if k.State != ledger.Inert || k.SHA256 != p.SHA256 {
			continue
		}
		if m := t.space.ModuleAt(k.Lo); m != nil && m.Ours && m.Lo == k.Lo && m.BuildID.String() == k.BuildID {
			return k
		}
	}
	return nil
}

// record is the ledger's record of this patch.
func (a *application) record(state ledger.State) ledger.Patch {
	p := a.plan.Patch
	rec := ledger.Patch{
		ID: a.id, Name: a.plan.Name, Version: a.plan.Version, Description: p.Description, CVEs: p.CVEs,
		SHA256: p.SHA256, BuildID: p.BuildID.String(), File: p.File, Tool: ToolVersion, State: state,
	}
	if a.lib != nil {
		rec.Base, rec.Lo, rec.Hi, rec.Handle = a.lib.Bias, a.lib.Lo, a.lib.Hi, a.lib.Handle
	}
	if state == ledger.Active {
		rec.AppliedAt = time.Now().UTC().Truncate(time.Millisecond)
		h := p.Hooks
		rec.Hooks = ledger.Hooks{BeforeApply: a.addrs(h.BeforeApply), AfterApply: a.addrs(h.AfterApply), BeforeRevert: a.addrs(h.BeforeRevert), AfterRevert: a.addrs(h.AfterRevert)}
		for _, r := range a.plan.Replacements {
			rec.Replaced = append(rec.Replaced, ledger.Replaced{Function: ledger.Clean(r.Names[0]), Module: ledger.Clean(r.Module.Name), Old: r.Old, New: a.bias + r.New, Method: r.method()})
		}
	}
	return rec
}

func (a *application) addrs(fs []patchfile.Function) []uint64 {
	var out []uint64
	for _, f := range fs {
		out = append(out, a.bias+f.Addr)
	}
	return out
}

// bind fills the pointers of the patch that refer to the target.
func (a *application) bind() error {
	if err := a.bindPlaces(); err != nil {
		return err
	}
	for _, r := range a.plan.Refs {
		if err := a.t.writeMem(binary.LittleEndian.AppendUint64(nil, r.addr), a.bias+r.slot); err != nil {
			return fmt.Errorf("bind %s: %w", r.query, err)
		}
	}
	return nil
}

// hooks runs functions of the patch; one that does not return 0 cancels.
func (a *application) hooks(fs []patchfile.Function, when string) error {
	return runHooks(a.agent, a.addrs(fs), a.plan.Name, when)
}

func runHooks(agent *inject.Agent, addrs []uint64, patch, when string) error {
	for i, addr := range addrs {
		got, err := agent.Hook(addr)
		if err == nil && got != 0 {
			err = fmt.Errorf("it returned %d", got)
		}
		if err != nil {
			what := fmt.Sprintf("the %s hook of %q cancels", when, patch)
			if strings.HasPrefix(when, "after-") {
				what = fmt.Sprintf("the %s hook of %q did not succeed", when, patch)
			}
			return &fault.Error{Kind: fault.Failed, Code: "hook", What: what, Where: fmt.Sprintf("hook %d of %d", i+1, len(addrs)), Err: err}
		}
	}
	return nil
}

// intend maps and fills the islands, works out the edits, and writes them into
// the ledger as what is about to be done.
func (a *application) intend() (change, error) {
	t := a.t
	next := t.ledger.Clone()
	changes, err := a.changes(next)
	if err != nil {
		return change{}, err
	}
	before := next.Clone()
	edits, err := next.Push(a.record(ledger.Active), changes)
	if err != nil {
		return change{}, err
	}
	before.Txn = &ledger.Txn{Verb: ledger.Apply, Patches: []uint64{a.id}, Edits: edits, Started: time.Now().UTC(), After: next}
	if err := t.saveWith(before, a.agent); err != nil {
		return change{}, err
	}
	c := t.pending(edits, a.req)
	for _, r := range a.plan.Replacements {
		const first = 14 // no thread may be within the first 14 bytes
		end := r.Old + max(min(first, r.Size), 1)
		if r.HasEntry {
			end = max(end, r.Jump.Overwritten.End)
			c.stack = append(c.stack, quiesce.Range{Start: r.Jump.Overwritten.Start, End: r.Jump.Overwritten.End, Name: r.Name()})
		}
		c.pc = append(c.pc, quiesce.Range{Start: r.Old, End: end, Name: r.Name()})
		c.pc = append(c.pc, r.Bodies...)
		c.stack = append(c.stack, r.Bodies...)
	}
	return c, nil
}

// pending is the change that the ledger's transaction describes.
func (t *target) pending(edits []ledger.Edit, req *Request) change {
	off, word := ledger.CommitWord(t.ledger.Generation)
	return change{edits: edits, commitAt: t.region.Root() + uint64(off), commit: word, memory: req.ScanMemory, maxPause: req.MaxPause}
}

// changes turns the plan into what each site is to be. Islands that are missing
// are mapped, and functions get their slots; l is changed accordingly.
func (a *application) changes(l *ledger.Ledger) ([]ledger.Change, error) {
	var out []ledger.Change
	word := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	known := l.FunctionsAt()
	for _, r := range a.plan.Replacements {
		i, ok := known[r.Old]
		if !ok {
			l.Functions = append(l.Functions, ledger.Function{Name: ledger.Clean(r.Names[0]), Module: ledger.Clean(r.Module.Name), BuildID: r.Module.BuildID.String(), Entry: r.Old, Size: r.Size})
			i = len(l.Functions) - 1
			known[r.Old] = i
		}
		f := &l.Functions[i]
		dest := a.bias + r.New
		if r.HasEntry {
			jumpTo := dest
			if !r.far() {
				if f.Slot == 0 {
					code, at, err := a.t.takeSlot(l, r.Module, a.agent, &a.islands)
					if err != nil {
						return nil, err
					}
					// A slot that nobody uses leads back to the function itself.
					if err := a.t.writeMem(word(r.Old), at); err != nil {
						return nil, err
					}
					f.Slot = code
				}
				at, ok := slotWord(l, f.Slot)
				if !ok {
					return nil, fmt.Errorf("slot %#x of %s is in no island", f.Slot, f.Name)
				}
				out = append(out, ledger.Change{Addr: at, Kind: ledger.SlotWord, Function: i, Original: word(r.Old), Bytes: word(dest)})
				jumpTo = f.Slot
			}
			code, err := r.Jump.Encode(jumpTo)
			if err != nil {
				return nil, err
			}
			original := r.Original
			for k, w := range r.Jump.Writes {
				kind := ledger.Entry
				if w.Addr != r.Jump.Site {
					kind = ledger.Pad
				}
				out = append(out, ledger.Change{Addr: w.Addr, Kind: kind, Function: i, Original: original[:w.Len], Bytes: code[k]})
				original = original[w.Len:]
			}
		}
		for _, s := range r.Slots {
			out = append(out, ledger.Change{Addr: s.Addr, Kind: ledger.VTable, Function: i, Original: word(s.Value), Bytes: word(dest)})
		}
	}
	return out, nil
}

// undoTime is how long taking back may take, after the time given by the user
// is over.
const undoTime = 5 * time.Second

// takeBack undoes what was done before the commit, with the agent that did it.
func (a *application) takeBack() error {
	a.agent.SetDeadline(time.Now().Add(undoTime))
	var errs []error
	l := a.t.ledger.Clone()
	l.Txn = nil
	known := l.Patch(a.id)
	switch {
	case a.reused || known == nil:
	case a.lib == nil:
		errs = append(errs, l.Forget(a.id))
	default:
		unmapped, err := a.agent.Unload(a.lib)
		errs = append(errs, err)
		if unmapped {
			errs = append(errs, l.Forget(a.id))
		} else {
			*known = a.record(ledger.Inert)
		}
	}
	for _, is := range a.islands {
		if errUnmap := a.agent.Unmap(is.Code, islandSize); errUnmap != nil {
			errs = append(errs, errUnmap)
		}
	}
	if a.t.region.Base != 0 && a.t.ledger.Generation != 0 {
		errs = append(errs, a.t.saveWith(l, a.agent))
	}
	errs = append(errs, a.agent.Close())
	return errors.Join(errs...)
}

// abandon undoes what was done when the commit has failed: the agent has ended.
func (a *application) abandon() error {
	var err error
	if a.agent, err = a.loader.Start(a.tr); err != nil {
		// The library stays mapped, and nothing calls it.
		l := a.t.ledger.Clone()
		if p := l.Patch(a.id); p != nil && !a.reused {
			*p = a.record(ledger.Inert)
		}
		l.Txn = nil
		return errors.Join(err, a.t.save(l))
	}
	a.islands = nil // they are in the ledger, for the next time
	return a.takeBack()
}

// afterwards writes the ledger as it is from now on, and runs the hooks that
// come after. The patch is in force whatever happens here.
func (a *application) afterwards() error {
	after := a.t.ledger.Txn.After
	if err := a.t.save(after); err != nil {
		return fmt.Errorf("the patch is in force, but the ledger could not be finished (the next command will): %w", err)
	}
	if len(a.plan.Patch.Hooks.AfterApply) == 0 {
		return nil
	}
	agent, err := a.loader.Start(a.tr)
	if err == nil {
		err = errors.Join(runHooks(agent, a.addrs(a.plan.Patch.Hooks.AfterApply), a.plan.Name, "after-apply"), agent.Close())
	}
	if err != nil {
		return fmt.Errorf("the patch is in force, but: %w", err)
	}
	return nil
}
