package engine

import (
	"debug/elf"
	"fmt"
	"strings"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/patchfile"
)

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
		if r := pl.byAddr[s.Addr]; r != nil && s.Bind == elf.STB_LOCAL && !strings.HasPrefix(o.name, "_Z") {
			r.Notes = append(r.Notes, "it is static there ("+s.String()+"); only the name tells that the patch means it")
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
		if rec.OldImage != 0 {
			if err := pl.pairCode(rec, o); err != nil {
				return err
			}
			continue
		}
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
		if r.Exact {
			continue
		}
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
