package engine

import (
	"debug/elf"
	"fmt"
	"sort"
	"strings"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
)

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
	stack := pl.t.ledger.Stacks()
	for _, r := range k.Replaced {
		if cur, ok := ledger.Top(stack(r.Old)); ok && cur.ID != k.ID {
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
// has replaced. It tells where this one takes the place of another.
func (pl *planner) checkVersions() error {
	stack := pl.t.ledger.Stacks()
	for _, r := range pl.p.Replacements {
		cur, ok := ledger.Top(stack(r.Old))
		switch {
		case !ok:
		case cur.Version < pl.p.Version:
			if cur.Name != pl.p.Name {
				r.Notes = append(r.Notes, fmt.Sprintf("patch %q version %d has replaced it: what that one has changed here counts no longer, unless this one has it too", cur.Name, cur.Version))
			}
		default:
			pl.refuse(&fault.Error{Code: "not-newer", What: "cannot replace " + r.Name(),
				Why:  fmt.Sprintf("version %d of patch %q has replaced it, and this is version %d", cur.Version, cur.Name, pl.p.Version),
				Hint: "a function is replaced only by a higher version; revert " + cur.Name + " to go back"})
		}
	}
	return nil
}

// checkClones tells of clones that go on beside a replaced function.
func (pl *planner) checkClones() error {
	for _, r := range pl.p.Replacements {
		if r.Exact {
			continue
		}
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
