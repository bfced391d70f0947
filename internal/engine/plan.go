package engine

import (
	"debug/elf"
	"fmt"
	"slices"
	"sort"
	"strings"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
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
	Method       Method
	Modules      []string // only functions of these modules; none: of all
	Weak         bool     // also functions that the patch exports weakly (inline and template code)
	AllowAliases bool     // also if other names share the address of a function
	Name         string   // instead of the patch's own name
	Version      uint64   // instead of the patch's own version, 0: its own
	DebugDirs    []string // where to look for separate debug files first

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
	New          []string // exported functions that the target does not have: helpers of the patch
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
		pl.consistency, pl.pairExports, pl.pairRecords, pl.checkBases, pl.addThunks, pl.checkAliases,
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

// known reports whether this very patch is applied, and refuses another one of
// the same name and version.
func (pl *planner) known() (bool, error) {
	for i := range pl.t.ledger.Patches {
		k := &pl.t.ledger.Patches[i]
		if k.State != ledger.Active || k.Name != pl.p.Name {
			continue
		}
		if k.Version == pl.p.Version && k.SHA256 == pl.p.Patch.SHA256 {
			return true, pl.inForce(k)
		}
		if k.Version == pl.p.Version {
			return false, &fault.Error{Kind: fault.Unfit, Code: "same-version", What: fmt.Sprintf("cannot apply %q", pl.p.Name),
				Why:  fmt.Sprintf("another file of the same name and version %d is applied (sha256 %.12s…, this one %.12s…)", k.Version, k.SHA256, pl.p.Patch.SHA256),
				Hint: "give the new one a higher version"}
		}
	}
	return false, nil
}

// inForce refuses a patch that is applied, but under a newer one: applying it
// again cannot bring it back.
func (pl *planner) inForce(k *ledger.Patch) error {
	for _, r := range k.Replaced {
		if cur, ok := pl.t.ledger.Current(r.Old); ok && cur.ID != k.ID {
			return &fault.Error{Kind: fault.Unfit, Code: "not-newer", What: fmt.Sprintf("cannot apply %q version %d", k.Name, k.Version),
				Where: elfsym.Demangle(r.Function), Why: fmt.Sprintf("it is applied, but version %d of %q has replaced the function since", cur.Version, cur.Name),
				Hint: fmt.Sprintf("a function is replaced only by a higher version; revert %s to go back", patchLabel(cur.Name, cur.Version))}
		}
	}
	replaced := make(map[uint64]bool, len(k.Replaced))
	for _, r := range k.Replaced {
		replaced[r.Old] = true
	}
	return pl.t.checkSites(func(entry uint64) bool { return replaced[entry] })
}

// checkBases compares the builds that the patch was made for with the mapped
// images: those that it names by module, and, where it names none, all modules in
// which it replaces something.
func (pl *planner) checkBases() error {
	asked := make(map[string][]elfsym.BuildID)
	for _, b := range pl.p.Patch.Bases {
		asked[b.Module] = append(asked[b.Module], b.BuildID)
	}
	for name, ids := range asked {
		var modules []*elfsym.Module
		if name == "" {
			seen := make(map[*elfsym.Module]bool)
			for _, r := range pl.p.Replacements {
				if !seen[r.Module] {
					seen[r.Module] = true
					modules = append(modules, r.Module)
				}
			}
		} else {
			for _, m := range pl.t.space.Modules {
				if !m.Ours && isModule(m, name) {
					modules = append(modules, m)
				}
			}
			if len(modules) == 0 {
				pl.refuse(&fault.Error{Code: "no-module", What: fmt.Sprintf("cannot apply %q", pl.p.Name), Where: name, Why: "the patch was made for a module that is not mapped"})
			}
		}
		for _, m := range modules {
			if !contains(ids, m.BuildID) {
				pl.refuse(wrongBuild(pl.p.Name, m, ids))
			}
		}
	}
	return nil
}

func contains(ids []elfsym.BuildID, id elfsym.BuildID) bool {
	for _, i := range ids {
		if i.Equal(id) {
			return true
		}
	}
	return false
}

func wrongBuild(patch string, m *elfsym.Module, ids []elfsym.BuildID) *fault.Error {
	var wanted []string
	for _, id := range ids {
		wanted = append(wanted, id.String())
	}
	runs := "one without a build-id"
	if len(m.BuildID) > 0 {
		runs = m.BuildID.String()
	}
	return &fault.Error{Code: "build-id", What: fmt.Sprintf("cannot apply %q", patch), Where: m.Name,
		Why:  fmt.Sprintf("it was made for build %s, and the process runs %s", strings.Join(wanted, " or "), runs),
		Hint: "use the patch for the build that runs"}
}

// isModule reports whether a module is meant by a name: its file's, its soname
// or its path.
func isModule(m *elfsym.Module, name string) bool {
	return m.Name == name || m.Path == name || m.Soname() == name && name != ""
}

// inScope reports whether functions of the module may be replaced at all.
func (pl *planner) inScope(m *elfsym.Module) bool {
	if m.Ours || m.Kind == elfsym.VDSO {
		return false
	}
	if len(pl.o.Modules) == 0 {
		return true
	}
	for _, name := range pl.o.Modules {
		if isModule(m, name) {
			return true
		}
	}
	return false
}

// offer is a function of the patch with the names under which it may replace.
type offer struct {
	name string
	addr uint64
}

// pairExports finds what the exported functions replace: everything of the same
// mangled name.
func (pl *planner) pairExports() error {
	for _, name := range pl.o.Modules {
		known := false
		for _, m := range pl.t.space.Modules {
			known = known || isModule(m, name)
		}
		if !known {
			pl.refuse(&fault.Error{Code: "no-module", What: fmt.Sprintf("cannot apply %q", pl.p.Name), Why: fmt.Sprintf("no module %q is mapped", name)})
		}
	}
	offers := make([]offer, 0, len(pl.p.Patch.Exports))
	for _, e := range pl.p.Patch.Exports {
		offers = append(offers, offer{e.Name, e.Addr})
	}
	if pl.o.Weak {
		for _, e := range pl.p.Patch.Weak {
			offers = append(offers, offer{e.Name, e.Addr})
		}
	}
	names := make([]string, len(offers))
	for i, o := range offers {
		names[i] = o.name
		pl.wanted[o.name] = true
	}
	if len(names) == 0 {
		return nil
	}
	found, err := pl.t.space.Lookup(names)
	if err != nil {
		return err
	}
	for _, o := range offers {
		if err := pl.pair(o, found[o.name]); err != nil {
			return err
		}
	}
	return nil
}

// pair chooses among the symbols of one name those that are replaced.
func (pl *planner) pair(o offer, found []elfsym.Symbol) error {
	var strong, weak, local []elfsym.Symbol
	for _, s := range found {
		switch {
		case !pl.inScope(s.Module) || !s.IsFunc() && !s.IsIFunc():
		case s.Bind == elf.STB_LOCAL:
			local = append(local, s)
		case s.Bind == elf.STB_GLOBAL:
			strong = append(strong, s)
		default: // weak, or unique
			weak = append(weak, s)
		}
	}
	strong = newestVersion(strong)
	chosen := append(append([]elfsym.Symbol(nil), strong...), weak...)
	switch {
	case len(strong) > 1:
		pl.refuse(ambiguous(o.name, strong))
		return nil
	case len(chosen) == 0 && len(local) > 1:
		pl.refuse(ambiguous(o.name, local))
		return nil
	case len(chosen) == 0:
		chosen = local
	case len(strong) == 0 && strings.HasPrefix(o.name, "_Z"):
		// A module that hides its copy of an inline function has it as a local
		// symbol. Functions with internal linkage have other mangled names.
		chosen = append(chosen, local...)
	}
	if len(chosen) == 0 {
		return pl.notThere(o.name)
	}
	for _, s := range chosen {
		if err := pl.add(s, o); err != nil {
			return err
		}
	}
	return nil
}

// newestVersion leaves, of symbols that differ in their version only, the one
// that new programs are linked with.
func newestVersion(list []elfsym.Symbol) []elfsym.Symbol {
	var out []elfsym.Symbol
	for _, s := range list {
		hidden := false
		for _, o := range list {
			hidden = hidden || s.Hidden && !o.Hidden && o.Module == s.Module
		}
		if !hidden {
			out = append(out, s)
		}
	}
	return out
}

func ambiguous(name string, list []elfsym.Symbol) *fault.Error {
	var cands []elfsym.Candidate
	var lines []string
	for _, s := range list {
		cands = append(cands, elfsym.Candidate{Module: s.Module.Name, File: s.File, Address: Hex(s.Addr).String(),
			Name: s.Demangled(), Mangled: s.Name, Version: s.Version})
		lines = append(lines, s.String())
	}
	return &fault.Error{Code: "ambiguous-symbol", What: "cannot replace " + elfsym.Demangle(name),
		Why:     fmt.Sprintf("%d functions have that name: %s", len(list), strings.Join(lines, ", ")),
		Hint:    "name one with --module, or in the patch with HOTPATCH_REPLACE(new, \"module!name\") or \"file.c:name\"",
		Details: cands}
}

// notThere handles an exported name that the target lacks: a helper of the
// patch, unless the compiler made something else of it in the target.
func (pl *planner) notThere(name string) error {
	clones, err := pl.t.space.Clones(nil, name)
	if err != nil {
		return err
	}
	if len(clones) == 0 {
		pl.p.New = append(pl.p.New, name)
		return nil
	}
	var lines []string
	for _, c := range clones {
		lines = append(lines, c.String())
	}
	pl.refuse(&fault.Error{Code: "clones-only", What: "cannot replace " + elfsym.Demangle(name),
		Why:  "the compiler kept only clones of it, with other parameters: " + strings.Join(lines, ", "),
		Hint: "name the clone in the patch, HOTPATCH_REPLACE(new, \"name.constprop.0\"), with a function that takes what it takes; or mark a helper of the patch with HOTPATCH_KEEP"})
	return nil
}

// add makes a replacement of a symbol; an IFUNC stands for what it chose.
func (pl *planner) add(s elfsym.Symbol, o offer) error {
	if s.IsIFunc() {
		return pl.addIFunc(s, o)
	}
	if r := pl.byAddr[s.Addr]; r != nil {
		if r.New != o.addr {
			pl.refuse(&fault.Error{Code: "alias-conflict", What: "cannot replace " + elfsym.Demangle(o.name), Where: s.String(),
				Why:  fmt.Sprintf("it is the same code as %s, for which the patch has another replacement", r.Name()),
				Hint: "the linker or the compiler folded two functions into one; replace both alike, or neither"})
			return nil
		}
		r.Names = append(r.Names, o.name)
		return nil
	}
	_, thunk := elfsym.ThunkOf(s.Name)
	r := &Replacement{Names: []string{s.Name}, Module: s.Module, Old: s.Addr, Size: s.Size, New: o.addr, Thunk: thunk}
	pl.byAddr[s.Addr] = r
	pl.p.Replacements = append(pl.p.Replacements, r)
	return nil
}

// addIFunc replaces the implementations that an indirect function has chosen in
// this process.
func (pl *planner) addIFunc(s elfsym.Symbol, o offer) error {
	impls, err := pl.t.space.IFuncImplementations(pl.t.mem, s)
	if err != nil {
		return pl.refuseErr(err)
	}
	for _, addr := range impls {
		m := pl.t.space.ModuleAt(addr)
		if m == nil || !pl.inScope(m) {
			pl.refuse(&fault.Error{Code: "ifunc-elsewhere", What: "cannot replace " + elfsym.Demangle(o.name), Where: s.String(),
				Why: fmt.Sprintf("its implementation at %#x is in no module that may be patched", addr)})
			continue
		}
		impl := elfsym.Symbol{Name: s.Name, Module: m, Addr: addr, Type: elf.STT_FUNC, Bind: elf.STB_LOCAL}
		if f, off, ok := pl.t.space.FuncAt(addr); ok && off == 0 {
			impl.Size = f.Size
			pl.wanted[f.Name] = true // the name of the implementation is meant too
		}
		if err := pl.add(impl, o); err != nil {
			return err
		}
		if r := pl.byAddr[addr]; r != nil {
			r.Notes = append(r.Notes, "an indirect function (IFUNC); the implementation chosen in this process is replaced")
		}
	}
	return nil
}

// pairRecords finds the functions that the patch names.
func (pl *planner) pairRecords() error {
	for _, rec := range pl.p.Patch.Replacements {
		o := offer{name: rec.New.Name, addr: rec.New.Addr}
		if rec.Old == "" {
			if err := pl.pairAddress(rec, o); err != nil {
				return err
			}
			continue
		}
		q, err := elfsym.ParseQuery(rec.Old)
		if err != nil {
			pl.refuse(badRecord(rec.Old, err))
			continue
		}
		isFunc := func(s elfsym.Symbol) bool { return pl.inScope(s.Module) && (s.IsFunc() || s.IsIFunc()) }
		s, err := pl.t.space.One(q, isFunc)
		if err != nil {
			all, ferr := pl.weakCopies(q, isFunc)
			if ferr != nil {
				return ferr
			}
			if all == nil {
				if err := pl.refuseErr(pl.notAFunction(q, err)); err != nil {
					return err
				}
				continue
			}
			for _, s := range all {
				pl.wanted[s.Name] = true
				if err := pl.add(s, offer{s.Name, o.addr}); err != nil {
					return err
				}
			}
			continue
		}
		pl.wanted[s.Name] = true
		if err := pl.add(s, offer{s.Name, o.addr}); err != nil {
			return err
		}
	}
	return nil
}

// badRecord is the refusal for a symbol that the patch names and nobody can read.
func badRecord(query string, err error) *fault.Error {
	return &fault.Error{Code: "patch-bad-record", What: "cannot use the patch library", Where: fmt.Sprintf("%q", query),
		Why: "it names a symbol that cannot be read", Err: err}
}

// weakCopies gives all matches of a query if they are copies of one inline
// function, which are one function by the rules of C++.
func (pl *planner) weakCopies(q elfsym.Query, isFunc func(elfsym.Symbol) bool) ([]elfsym.Symbol, error) {
	found, err := pl.t.space.Find(q)
	if err != nil {
		return nil, err
	}
	var all []elfsym.Symbol
	for _, s := range found {
		if !isFunc(s) {
			continue
		}
		if s.Bind != elf.STB_WEAK || len(all) > 0 && all[0].Name != s.Name {
			return nil, nil
		}
		all = append(all, s)
	}
	return all, nil
}

// notAFunction improves "no such symbol" for a name that is something else.
func (pl *planner) notAFunction(q elfsym.Query, err error) error {
	if fault.CodeOf(err) != "no-symbol" {
		return err
	}
	found, ferr := pl.t.space.Find(q)
	if ferr != nil || len(found) == 0 {
		return err
	}
	for _, s := range found {
		if s.IsFunc() || s.IsIFunc() {
			return err
		}
	}
	return &fault.Error{Kind: fault.Unfit, Code: "not-a-function", What: "cannot replace " + q.Name, Where: found[0].String(),
		Why: "it is no function", Hint: "variables are reached with HOTPATCH_REF (include/hotpatch.h)"}
}

// pairAddress handles a function named by its address in a build.
func (pl *planner) pairAddress(rec patchfile.Replacement, o offer) error {
	for _, m := range pl.t.space.Modules {
		if !pl.inScope(m) || !m.BuildID.Equal(rec.OldBuildID) {
			continue
		}
		addr := m.Addr(rec.OldAddr)
		if !m.InText(addr) {
			pl.refuse(&fault.Error{Code: "not-code", What: fmt.Sprintf("cannot replace the function at %#x", rec.OldAddr), Where: m.Name, Why: "there is no code at that address"})
			return nil
		}
		s := elfsym.Symbol{Name: fmt.Sprintf("%s+%#x", m.Name, rec.OldAddr), Module: m, Addr: addr, Type: elf.STT_FUNC}
		if f, off, ok := pl.t.space.FuncAt(addr); ok {
			if off != 0 {
				pl.refuse(&fault.Error{Code: "not-an-entry", What: fmt.Sprintf("cannot replace the function at %#x", rec.OldAddr), Where: m.Name,
					Why: fmt.Sprintf("that address is %d bytes inside %s", off, f.Demangled())})
				return nil
			}
			s = f
		}
		pl.wanted[s.Name] = true
		return pl.add(s, offer{s.Name, o.addr})
	}
	pl.refuse(&fault.Error{Code: "build-id", What: fmt.Sprintf("cannot replace the function at %#x", rec.OldAddr),
		Why: fmt.Sprintf("no mapped module has build-id %s", rec.OldBuildID), Hint: "use the patch for the build that runs"})
	return nil
}

// addThunks adds the thunks of replaced virtual functions: each holds a copy of
// the old body at -O2, and its slots need the patch's own thunk, which adjusts
// "this" in the same way.
func (pl *planner) addThunks() error {
	for _, r := range pl.p.Replacements[:len(pl.p.Replacements):len(pl.p.Replacements)] {
		for _, name := range r.Names {
			thunks, err := pl.t.space.Thunks(r.Module, name)
			if err != nil {
				return err
			}
			for _, th := range thunks {
				if !th.IsFunc() || pl.byAddr[th.Addr] != nil {
					continue
				}
				addr, ok := pl.p.Patch.Lookup(th.Name)
				if !ok {
					pl.refuse(&fault.Error{Code: "thunk-missing", What: "cannot replace " + r.Name(), Where: th.String(),
						Why:  "calls through a base class go through this thunk, and the patch has none of that name",
						Hint: "define the function in the patch with the whole class declaration, so that the compiler emits its thunks"})
					continue
				}
				pl.wanted[th.Name] = true
				if err := pl.add(th, offer{th.Name, addr}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// checkAliases refuses functions whose code other names share, unless these are
// meant too.
func (pl *planner) checkAliases() error {
	for _, r := range pl.p.Replacements {
		sym := elfsym.Symbol{Name: r.Names[0], Module: r.Module, Addr: r.Old, Size: r.Size, Type: elf.STT_FUNC}
		aliases, err := pl.t.space.Aliases(sym)
		if err != nil {
			return err
		}
		var others []string
		for _, a := range aliases {
			if !pl.wanted[a.Name] && !sameStructor(a.Name, r.Names) {
				others = append(others, a.Demangled())
			}
		}
		if len(others) == 0 {
			continue
		}
		sort.Strings(others)
		if pl.o.AllowAliases {
			r.Notes = append(r.Notes, "also replaces "+strings.Join(others, ", ")+", which is the same code")
			continue
		}
		pl.refuse(&fault.Error{Code: "alias", What: "cannot replace " + r.Name(), Where: fmt.Sprintf("%s, %#x", r.Module.Name, r.Old),
			Why:  "the same code is also " + strings.Join(others, ", ") + " (an alias, or equal functions that were folded into one), which the patch does not mean",
			Hint: "if all of these names are meant, say so with --allow-aliases, or define them all in the patch"})
	}
	return nil
}

// sameStructor reports whether a name is the other variant of a constructor or
// destructor among names: complete and base object variants are usually one
// function (Itanium C++ ABI, 5.1.4.3).
func sameStructor(name string, names []string) bool {
	for _, n := range names {
		if len(n) != len(name) {
			continue
		}
		diff := 0
		ok := true
		for i := range n {
			if n[i] == name[i] {
				continue
			}
			diff++
			structor := i > 0 && (n[i-1] == 'C' || n[i-1] == 'D') && n[i] >= '0' && n[i] <= '5' && name[i] >= '0' && name[i] <= '5'
			ok = ok && structor
		}
		if diff == 1 && ok {
			return true
		}
	}
	return false
}

// checkVersions refuses to replace what a patch of the same or a higher version
// has replaced.
func (pl *planner) checkVersions() error {
	for _, r := range pl.p.Replacements {
		if cur, ok := pl.t.ledger.Current(r.Old); ok && cur.Version >= pl.p.Version {
			pl.refuse(&fault.Error{Code: "not-newer", What: "cannot replace " + r.Name(),
				Why:  fmt.Sprintf("version %d of patch %q has replaced it, and this is version %d", cur.Version, cur.Name, pl.p.Version),
				Hint: "a function is replaced only by a higher version; revert " + cur.Name + " to go back"})
		}
	}
	return nil
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

// checkClones tells of clones that go on beside a replaced function.
func (pl *planner) checkClones() error {
	for _, r := range pl.p.Replacements {
		for _, name := range r.Names {
			clones, err := pl.t.space.Clones(r.Module, name)
			if err != nil {
				return err
			}
			var others []string
			for _, c := range clones {
				if !strings.HasSuffix(c.Name, ".cold") && !strings.Contains(c.Name, ".cold.") {
					others = append(others, c.Name)
				}
			}
			if len(others) > 0 {
				r.Notes = append(r.Notes, "the compiler also made "+strings.Join(others, ", ")+"; calls of these are not replaced")
			}
		}
	}
	return nil
}
