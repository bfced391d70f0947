package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/ianlancetaylor/demangle"

	"hotpatch/internal/fault"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
	"hotpatch/internal/rebuild"
)

// Pair is an object file before and after the change.
type Pair struct{ Pre, Post string }

// Base is an image that runs: a program or a library, with separate debug files for it,
// if there are any.
type Base struct {
	Path  string
	Debug []string
	Shown string // what people are told of it; empty: Path
	Maybe bool   // a change may have nothing to do with it
}

func (b *Base) String() string { return cmp.Or(b.Shown, b.Path) }

// Request is what a patch is to be made of.
type Request struct {
	Pairs    []Pair
	Objects  []string // the other objects that the bases were linked from, or directories with them; none: not known
	Bases    []Base
	Allow    []string // overrides, see objdiff.Overrides
	Meta     patchlink.Meta
	Out      string                           // the file to be written
	Progress func(format string, args ...any) // told what is being done; may be nil

	objects []rebuild.Object // of the state before the change, as far as they are known
	whole   []bool           // by base: they are all of it
	folded  []bool           // by base: equal functions were made one
	linked  [][]string       // by base: libraries that the build links it with, before or after the change
	added   []string         // those of them that new code is the first to need

	sameLine func(file string, line int) bool // see objdiff.Options
}

// Function is a function that a patch replaces, or does not.
type Function struct {
	Name    string   `json:"name"` // demangled
	Mangled string   `json:"mangled"`
	Object  string   `json:"object,omitempty"` // before the change
	Module  string   `json:"module,omitempty"`
	Why     string   `json:"why,omitempty"`     // the first difference
	Inlined []string `json:"inlined,omitempty"` // changed functions that are inlined in it
}

// Warning is something that the author of the patch should know.
type Warning struct {
	Code     string `json:"code"`
	Symbol   string `json:"symbol,omitempty"`
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Why      string `json:"why"`
	Hint     string `json:"hint,omitempty"`
	Override string `json:"override,omitempty"` // that allowed it
}

// Result is a patch that was made.
type Result struct {
	File     string     `json:"file"`
	Name     string     `json:"name"`
	Version  uint64     `json:"version"`
	Replaced []Function `json:"replaced"`
	Absent   []string   `json:"absent,omitempty"` // changed functions of which the images have no code
	Bound    int        `json:"bound"`            // places that refer to the images
	Imports  []string   `json:"imports,omitempty"`
	Added    []string   `json:"added,omitempty"` // libraries that new code needs in addition, of those that the build links
	Warnings []Warning  `json:"warnings,omitempty"`
	Source   *Rebuilt   `json:"source,omitempty"`  // if it was made from a change of source
	Package  *Package   `json:"package,omitempty"` // if that is a source package
}

// NothingToPatch is the answer that a change makes no difference in the object code.
func NothingToPatch(objects int) *fault.Error {
	return &fault.Error{Kind: fault.NoChange, Code: "nothing-to-patch", What: "there is nothing to patch",
		Why: fmt.Sprintf("the change makes no difference in the code of %d compared objects", objects)}
}

// Pairs makes a patch from pairs of objects. Faults: "nothing-to-patch" (NoChange), those
// of objfile, objdiff, runpre and patchlink, and "no-base". All refusals of all pairs are
// given together.
func Pairs(ctx context.Context, r Request) (*Result, error) {
	tell := r.Progress
	if tell == nil {
		tell = func(string, ...any) {}
	}
	changed, err := compare(r, tell)
	if err != nil {
		return nil, err
	}
	for _, p := range r.Pairs {
		r.objects = append(r.objects, rebuild.Object{File: p.Pre})
	}
	if len(r.Objects) > 0 {
		if err := r.allObjects(); err != nil {
			return nil, err
		}
	}
	result := &Result{File: r.Out, Name: r.Meta.Name, Version: r.Meta.Version, Replaced: []Function{}}
	return result, r.finish(ctx, changed, tell, result)
}

// allObjects takes the objects that were named for all that the bases were linked from.
func (r *Request) allObjects() error {
	for _, path := range r.Objects {
		err := filepath.WalkDir(path, func(file string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() && (file == path || filepath.Ext(file) == ".o") {
				r.objects = append(r.objects, rebuild.Object{File: file})
			}
			return err
		})
		if err != nil {
			return &fault.Error{Kind: fault.Unfit, Code: "object-unreadable", What: "cannot read the objects", Where: path, Err: err}
		}
	}
	var all []int
	for i := range r.Bases {
		all = append(all, i)
		r.whole = append(r.whole, true)
	}
	for i := range r.objects {
		r.objects[i].Images = all
	}
	return nil
}

// compare compares all pairs and gives the differences that are any.
func compare(r Request, tell func(string, ...any)) ([]*candidate, error) {
	var list []*candidate
	var errs []error
	for _, p := range r.Pairs {
		tell("comparing %s", filepath.Base(p.Post))
		d, err := compareOne(r, p, "", nil)
		switch {
		case err != nil:
			errs = append(errs, err)
		case !d.Empty():
			list = append(list, &candidate{diff: d})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, NothingToPatch(len(r.Pairs))
	}
	return list, nil
}

// compareOne compares two objects. If a build has made both, output is what it calls them, and sameLine
// says what is known of the lines of the source.
func compareOne(r Request, p Pair, output string, sameLine func(string, int) bool) (*objdiff.Diff, error) {
	pre, err := objfile.Open(p.Pre)
	if err != nil {
		return nil, err
	}
	post, err := objfile.Open(p.Post)
	if err != nil {
		return nil, err
	}
	if output != "" {
		pre.Path, post.Path = output, output
	}
	return objdiff.Compare(pre, post, objdiff.Options{Allow: r.Allow, SameLine: sameLine})
}

// finish makes the patch of all that has changed.
func (r *Request) finish(ctx context.Context, changed []*candidate, tell func(string, ...any), result *Result) error {
	inputs, err := r.place(ctx, changed, tell, result)
	if err != nil {
		return err
	}
	tell("linking %s", filepath.Base(r.Out))
	report, err := r.link(ctx, inputs)
	if tooFar(err) {
		again, e := r.indirectly(changed, inputs)
		if e != nil {
			return e
		}
		if again {
			report, err = r.link(ctx, inputs)
		}
	}
	if err != nil {
		return err
	}
	var diffs []*objdiff.Diff
	for _, in := range inputs {
		diffs = append(diffs, in.Diff)
	}
	result.describe(diffs, report)
	// What was moved is neither new nor left to those who know its address.
	result.Warnings = slices.DeleteFunc(result.Warnings, func(w Warning) bool {
		return (w.Code == "new-global" || w.Code == "removed-function") && slices.ContainsFunc(report.Moved, func(name string) bool { return demangle.Filter(name) == w.Symbol })
	})
	result.Added = r.added
	for _, o := range report.NoEntry {
		result.Warnings = append(result.Warnings, Warning{Code: "no-entry", Symbol: demangle.Filter(o.Name),
			Why: "no jump can be written into it (" + o.Why + "): the patch will be refused, unless all calls of it are virtual", Hint: "change a function that calls it, too, so that the compiler inlines it there or calls another"})
	}
	for _, o := range report.Own {
		result.Warnings = append(result.Warnings, Warning{Code: "own-copy", Symbol: demangle.Filter(o.Name), Why: "the patch has one of its own, and the program may have one too: " + o.Why, Override: o.Override})
	}
	return nil
}

// changedCode gives the code that the patch replaces.
func changedCode(d *objdiff.Diff) []*objfile.Symbol {
	var list []*objfile.Symbol
	for _, f := range d.Changed {
		list = append(list, f.Pre)
		for _, p := range f.Parts {
			if p.Pre != nil {
				list = append(list, p.Pre)
			}
		}
	}
	return list
}

// describe adds what was linked to the result.
func (r *Result) describe(diffs []*objdiff.Diff, report *patchlink.Report) {
	r.Version = report.Patch.Version
	r.Name = report.Patch.Name
	r.Bound = report.Bound
	r.Imports = report.Imports
	for _, name := range report.Absent {
		r.Absent = append(r.Absent, demangle.Filter(name))
	}
	for _, f := range report.Functions {
		one := Function{Name: demangle.Filter(f.Name), Mangled: f.Name, Module: f.Module}
		for _, d := range diffs {
			i := slices.IndexFunc(d.Changed, func(c objdiff.Function) bool { return c.Pre.Name == f.Name })
			if i >= 0 {
				one.Object, one.Why, one.Inlined = d.Pre.Path, d.Changed[i].Why, d.Changed[i].Inlined
				break
			}
			if slices.ContainsFunc(d.New, func(y *objfile.Symbol) bool { return y.Name == f.Name }) && slices.Contains(report.Moved, f.Name) {
				one.Object, one.Why = d.Pre.Path, "it was defined in another file"
				break
			}
		}
		r.Replaced = append(r.Replaced, one)
	}
}
