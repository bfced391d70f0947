package engine

import (
	"fmt"
	"slices"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/patchfile"
	"hotpatch/internal/procfs"
	"hotpatch/internal/quiesce"
	"hotpatch/trampoline"
)

// Method says how functions are replaced.
type Method string

// The methods.
const (
	Auto   Method = "auto"   // the entry, and the vtable slots of a virtual function
	Entry  Method = "entry"  // the entry only
	VTable Method = "vtable" // vtable slots only
)

// Options say what apply may do.
type Options struct {
	Method          Method
	Modules         []string // only functions of these modules; none: of all
	Weak            bool     // also functions that the patch exports weakly (inline and template code)
	AllowAliases    bool     // also if other names share the address of a function
	AllowInterposed bool     // also if calls by name go to a copy of it in another module
	Name            string   // instead of the patch's own name
	Version         uint64   // instead of the patch's own version, 0: its own
	DebugDirs       []string // where to look for separate debug files first

	Consistency Consistency // "": what the patch demands, else Stack
}

// Replacement is one function of a plan: what is known before the library is
// loaded.
type Replacement struct {
	Names  []string // mangled names that mean it, the first one for messages
	Module *elfsym.Module
	Old    uint64 // entry in the target
	Size   uint64
	New    uint64 // link-time address in the patch library
	Thunk  bool   // a thunk of another replaced function
	Exact  bool   // its code was compared when the patch was made, with what belongs to it: thunks, clones

	// HasEntry says that the entry is rewritten; Jump how. A function that a
	// patch has rewritten before keeps its jump, and only its slot changes.
	HasEntry bool
	Jump     trampoline.Patch
	Original []byte // the overwritten bytes, one after the other for Jump.Writes

	Bodies []quiesce.Range // code that nobody may be in, for Stack consistency

	Slots []elfsym.Slot // vtable slots, with the values before any patch
	Notes []string
}

// Name gives the name for people.
func (r *Replacement) Name() string { return elfsym.Demangle(r.Names[0]) }

// Plan is what a patch would change in one target. It was made without touching
// the target.
type Plan struct {
	Patch        *patchfile.Patch
	Name         string
	Version      uint64
	Already      bool // it is applied
	Consistency  Consistency
	Replacements []*Replacement
	Refs         []boundRef
	Images       map[uint32]*elfsym.Module // by patchfile.Image.Number
	New          []string                  // exported functions that the target does not have: helpers of the patch
	Notes        []string
}

// boundRef is a pointer variable of the patch and the address it gets.
type boundRef struct {
	slot  uint64 // link-time address
	addr  uint64
	query string
}

// planner makes a plan. Refusals are collected, so that all are reported.
type planner struct {
	t       *target
	o       Options
	p       *Plan
	refused fault.List

	wanted map[string]bool // every name that is meant, for aliases
	byAddr map[uint64]*Replacement

	functions map[uint64]int // index of the ledger's, by entry
}

// plan decides everything that can be decided without touching the target. If a
// library is closed while it is read, the plan is made anew.
func (t *target) plan(patch *patchfile.Patch, o Options) (*Plan, error) {
	const tries = 20
	for try := 1; ; try++ {
		p, err := t.planOnce(patch, o)
		switch fault.CodeOf(err) {
		case "memory-read", "damaged-elf", "not-mapped":
			if try < 4 || try < tries && t.modulesChanged() {
				continue
			}
		}
		return p, err
	}
}

// modulesChanged reports whether the executable mappings are no longer those that
// the modules were found in.
func (t *target) modulesChanged() bool {
	maps, err := t.proc.Maps()
	if err != nil || t.space == nil {
		return false
	}
	code := func(maps []procfs.Map) []procfs.Map {
		return slices.DeleteFunc(slices.Clone(maps), func(m procfs.Map) bool { return m.Perm&procfs.Exec == 0 || m.Inode == 0 })
	}
	return !slices.Equal(code(maps), code(t.space.Maps))
}

func (t *target) planOnce(patch *patchfile.Patch, o Options) (*Plan, error) {
	p := &Plan{Patch: patch, Name: patch.Name, Version: patch.Version}
	if o.Name != "" {
		p.Name = o.Name
	}
	if o.Version != 0 {
		p.Version = o.Version
	}
	pl := &planner{t: t, o: o, p: p, wanted: make(map[string]bool), byAddr: make(map[uint64]*Replacement)}
	if already, err := pl.known(); err != nil || already {
		p.Already = already && err == nil
		return p, err
	}
	if err := t.resolve(o.DebugDirs); err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		pl.consistency, pl.findImages, pl.pairExports, pl.pairRecords, pl.checkBases, pl.addThunks, pl.checkAliases, pl.checkInterposed,
		pl.checkVersions, pl.checkSites, pl.findSlots, pl.judgeEntries, pl.checkIntruders, pl.findBodies, pl.bindRefs, pl.checkClones,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if len(p.Replacements) == 0 && len(pl.refused) == 0 {
		pl.refuse(&fault.Error{Code: "nothing-in-common", What: fmt.Sprintf("cannot apply %q to %s", p.Name, t.program()),
			Why:  fmt.Sprintf("none of the %d functions that it offers is in the process", len(patch.Exports)+len(patch.Replacements)),
			Hint: weakHint(patch, o)})
	}
	return p, pl.refused.ErrOrNil()
}

func weakHint(patch *patchfile.Patch, o Options) string {
	if len(patch.Weak) > 0 && !o.Weak {
		return fmt.Sprintf("it also exports %d weak functions (inline or template code), which are replaced only with --weak", len(patch.Weak))
	}
	return "names are compared in their mangled form; hotpatch symbols shows what the process has"
}

// refuse notes a refusal; the kind is Unfit unless it says otherwise.
func (pl *planner) refuse(e *fault.Error) {
	if e.Kind == 0 {
		e.Kind = fault.Unfit
	}
	pl.refused = append(pl.refused, e)
}

// refuseErr notes err if it is a refusal, and gives it back if it is anything else.
func (pl *planner) refuseErr(err error) error {
	if e, ok := err.(*fault.Error); ok && (e.Kind == fault.Unfit || e.Kind == fault.Differs) {
		pl.refused = append(pl.refused, e)
		return nil
	}
	return err
}

// bindRefs finds the symbols of the target that the patch refers to.
func (pl *planner) bindRefs() error {
	for _, ref := range pl.p.Patch.Refs {
		q, err := elfsym.ParseQuery(ref.Query)
		if err != nil {
			pl.refuse(badRecord(ref.Query, err))
			continue
		}
		s, err := pl.t.space.One(q, func(s elfsym.Symbol) bool {
			switch ref.Kind {
			case patchfile.FuncSymbol:
				return s.IsFunc() || s.IsIFunc()
			case patchfile.VarSymbol:
				return !s.IsFunc() && !s.IsIFunc()
			}
			return true
		})
		if err != nil {
			if err := pl.refuseErr(err); err != nil {
				return err
			}
			continue
		}
		addr := s.Addr
		if s.IsIFunc() {
			impls, err := pl.t.space.IFuncImplementations(pl.t.mem, s)
			if err != nil || len(impls) != 1 {
				if err == nil {
					err = &fault.Error{Kind: fault.Unfit, Code: "ifunc-unresolved", What: "cannot refer to " + ref.Query, Why: fmt.Sprintf("it is an indirect function with %d implementations", len(impls))}
				}
				if err := pl.refuseErr(err); err != nil {
					return err
				}
				continue
			}
			addr = impls[0]
		}
		pl.p.Refs = append(pl.p.Refs, boundRef{slot: ref.Slot, addr: addr, query: ref.Query})
	}
	return nil
}
