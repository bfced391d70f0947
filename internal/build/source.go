package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hotpatch/internal/fault"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
	"hotpatch/internal/rebuild"
	"hotpatch/internal/sourcetree"
)

// Source is a change of a source tree.
type Source struct {
	Tree    string // as it is before the change
	Patches []sourcetree.Patch
	Command []string // that builds the tree
	Jobs    int      // that compile at the same time
	Work    string   // an empty directory for everything that is written
}

// Rebuilt is what had to be compiled for a patch.
type Rebuilt struct {
	Compiled  int      `json:"compiled"`         // files that the whole build has compiled
	Again     bool     `json:"again"`            // the build was run a second time, without compiling
	Units     []Unit   `json:"units"`            // compiled before and after the change
	Elsewhere []Unit   `json:"elsewhere"`        // concerned as well, but in none of the bases
	Unread    []string `json:"unread,omitempty"` // changed files that no compiler reads
}

// Unit is a file that was compiled again.
type Unit struct {
	Source  string   `json:"source"`
	Output  string   `json:"output"` // of the build
	Linked  []string `json:"linked,omitempty"`
	Because []string `json:"because"`           // changed files that it reads
	Differs bool     `json:"differs"`           // its object code does
	New     bool     `json:"new,omitempty"`     // it is compiled only after the change
	Untaken bool     `json:"untaken,omitempty"` // the linker has taken nothing of it into what it is linked into
}

// FromSource makes a patch from a change of a source tree. Faults: those of Pairs, and
// those of rebuild and sourcetree.
func FromSource(ctx context.Context, r Request, s Source) (*Result, error) {
	tell := r.Progress
	if tell == nil {
		tell = func(string, ...any) {}
	}
	tree, err := sourceTree(s.Tree, s.Work)
	if err != nil {
		return nil, err
	}
	work, err := filepath.EvalSymlinks(s.Work)
	if err != nil {
		return nil, workFault(err)
	}
	req := rebuild.Request{Tree: tree, Work: work, Command: s.Command, Env: os.Environ(), Jobs: s.Jobs, Images: images(r.Bases)}
	tell("copying %s", tree)
	if err := sourcetree.Copy(ctx, tree, req.Copy()); err != nil {
		return nil, err
	}
	store := filepath.Join(work, "changes")
	if err := os.Mkdir(store, 0o755); err != nil {
		return nil, workFault(err)
	}
	if req.Changes, err = sourcetree.Changes(ctx, tree, req.Copy(), store, s.Patches); err != nil {
		return nil, err
	}
	report, err := rebuild.Run(ctx, req, tell)
	if err != nil {
		return nil, err
	}
	return patch(ctx, r, report, newLines(req).same, tell)
}

// sourceTree gives the real path of a source tree that can be copied.
func sourceTree(dir, work string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return "", &fault.Error{Kind: fault.Usage, Code: "source-unreadable", What: "cannot read the source tree", Where: dir, Err: err}
	}
	if w, err := filepath.EvalSymlinks(work); err == nil && (abs == "/" || w == abs || strings.HasPrefix(w, abs+"/")) {
		return "", &fault.Error{Kind: fault.Usage, Code: "source-unreadable", What: "cannot copy the source tree", Where: abs,
			Why: "the directory for temporary files, " + w + ", is in it", Hint: "set TMPDIR to another place"}
	}
	return abs, nil
}

// patch makes a patch out of what was compiled.
func patch(ctx context.Context, r Request, report *rebuild.Report, sameLine func(string, int) bool, tell func(string, ...any)) (*Result, error) {
	result := &Result{File: r.Out, Name: r.Meta.Name, Version: r.Meta.Version, Replaced: []Function{}}
	result.Source = &Rebuilt{Compiled: report.Compiled, Again: report.Again, Units: []Unit{}, Elsewhere: []Unit{}, Unread: report.Unread}
	for _, u := range report.Elsewhere {
		result.Source.Elsewhere = append(result.Source.Elsewhere, unitOf(u))
	}
	var changed []*candidate
	var errs []error
	for i := range report.Units {
		u := &report.Units[i]
		d, err := r.unit(u, sameLine)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		one := unitOf(*u)
		one.Differs = !d.Empty()
		result.Source.Units = append(result.Source.Units, one)
		if one.Differs {
			changed = append(changed, &candidate{unit: u, diff: d})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(changed) == 0 {
		return nil, relinked(nothing(result.Source), report)
	}
	r.objects, r.whole, r.folded, r.linked, r.sameLine = report.Objects, report.Whole, report.Folded, report.Libraries, sameLine
	for _, how := range report.Relinked {
		result.Warnings = append(result.Warnings, Warning{Code: "changed-link", Why: how + " after the change: a patch does not carry that"})
	}
	return result, relinked(r.finish(ctx, changed, tell, result), report)
}

// relinked adds to the answer that there is nothing to patch what else the change does.
func relinked(err error, report *rebuild.Report) error {
	var e *fault.Error
	if len(report.Relinked) > 0 && errors.As(err, &e) && e.Code == "nothing-to-patch" {
		e.Why += "; but " + strings.Join(report.Relinked, ", ") + " after it, which no patch carries"
	}
	return err
}

// unit compares a file that was compiled before and after the change. One that is new has
// nothing before.
func (r *Request) unit(u *rebuild.Unit, sameLine func(string, int) bool) (*objdiff.Diff, error) {
	if !u.New {
		return compareOne(*r, Pair{u.Pre, u.Post}, u.Output, sameLine)
	}
	post, err := objfile.Open(u.Post)
	if err != nil {
		return nil, err
	}
	post.Path = u.Output
	return objdiff.Compare(objfile.Empty(post), post, objdiff.Options{Allow: r.Allow, SameLine: sameLine})
}

func unitOf(u rebuild.Unit) Unit {
	return Unit{Source: u.Source, Output: u.Output, Linked: u.Linked, Because: u.Because, New: u.New, Untaken: u.Untaken}
}

// nothing is the answer that a change of source makes no difference.
func nothing(s *Rebuilt) *fault.Error {
	e := NothingToPatch(len(s.Units))
	e.Details = s
	switch {
	case len(s.Units) == 0 && len(s.Elsewhere) > 0:
		e.Why = fmt.Sprintf("the change concerns only what is in none of the bases: %s, linked into %s", s.Elsewhere[0].Source, strings.Join(s.Elsewhere[0].Linked, ", "))
		if n := len(s.Elsewhere) - 1; n > 0 {
			e.Why += fmt.Sprintf(", and %d more", n)
		}
		e.Hint = "name another program or library with --base if the change is for that"
	case len(s.Units) == 0:
		e.Why = "no compiler reads what has changed: " + strings.Join(s.Unread, ", ")
	}
	return e
}

// untaken is the answer that a change concerns only objects that are not in the bases.
func untaken(s *Rebuilt) *fault.Error {
	e := NothingToPatch(len(s.Units))
	e.Details = s
	var names []string
	for _, u := range s.Elsewhere {
		if u.Untaken {
			names = append(names, u.Source)
		}
	}
	e.Why = "the change concerns only code that is not in the bases: the linker has taken nothing of " + strings.Join(names, ", ") + " into them, since nothing there refers to it"
	return e
}
