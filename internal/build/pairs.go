package build

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ianlancetaylor/demangle"

	"hotpatch/internal/fault"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
	"hotpatch/internal/runpre"
)

// Pair is an object file before and after the change.
type Pair struct{ Pre, Post string }

// Base is an image that runs: a program or a library, with separate debug files for it,
// if there are any.
type Base struct {
	Path  string
	Debug []string
}

// Request is what a patch is to be made of.
type Request struct {
	Pairs    []Pair
	Bases    []Base
	Allow    []string // overrides, see objdiff.Overrides
	Meta     patchlink.Meta
	Out      string                           // the file to be written
	Progress func(format string, args ...any) // told what is being done; may be nil
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
	Warnings []Warning  `json:"warnings,omitempty"`
}

// NothingToPatch is the answer that a change makes no difference in the object code.
func NothingToPatch(objects int) *fault.Error {
	return &fault.Error{Kind: fault.NoChange, Code: "nothing-to-patch", What: "there is nothing to patch",
		Why: fmt.Sprintf("the change makes no difference in the code of %d compared objects", objects)}
}

// Pairs makes a patch from pairs of objects. Faults: "nothing-to-patch" (NoChange), those
// of objfile, objdiff, runpre and patchlink, "no-base" and "ambiguous-base". All refusals
// of all pairs are given together.
func Pairs(ctx context.Context, r Request) (*Result, error) {
	tell := r.Progress
	if tell == nil {
		tell = func(string, ...any) {}
	}
	diffs, err := compare(r, tell)
	if err != nil {
		return nil, err
	}
	result := &Result{File: r.Out, Name: r.Meta.Name, Version: r.Meta.Version, Replaced: []Function{}}
	inputs, err := place(ctx, r, diffs, tell, result)
	if err != nil {
		return nil, err
	}
	tell("linking %s", filepath.Base(r.Out))
	report, err := patchlink.Link(ctx, inputs, r.Meta, r.Out)
	if err != nil {
		return nil, err
	}
	result.describe(diffs, report)
	return result, nil
}

// compare compares all pairs and gives the differences that are any.
func compare(r Request, tell func(string, ...any)) ([]*objdiff.Diff, error) {
	var diffs []*objdiff.Diff
	var errs []error
	for _, p := range r.Pairs {
		tell("comparing %s", filepath.Base(p.Post))
		pre, err := objfile.Open(p.Pre)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		post, err := objfile.Open(p.Post)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		d, err := objdiff.Compare(pre, post, objdiff.Options{Allow: r.Allow})
		switch {
		case err != nil:
			errs = append(errs, err)
		case !d.Empty():
			diffs = append(diffs, d)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(diffs) == 0 {
		return nil, NothingToPatch(len(r.Pairs))
	}
	return diffs, nil
}

// place finds for each difference the image that has the object.
func place(ctx context.Context, r Request, diffs []*objdiff.Diff, tell func(string, ...any), result *Result) ([]patchlink.Input, error) {
	var images []*runpre.Image
	for _, b := range r.Bases {
		tell("reading %s", filepath.Base(b.Path))
		im, err := runpre.Open(b.Path, b.Debug...)
		if err != nil {
			return nil, err
		}
		images = append(images, im)
	}
	var inputs []patchlink.Input
	var errs []error
	for _, d := range diffs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		tell("finding the code of %s", filepath.Base(d.Pre.Path))
		p, err := placeOne(r, images, d)
		if err == nil {
			err = p.Check(changed(d))
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		inputs = append(inputs, patchlink.Input{Diff: d, Base: p})
		for _, w := range d.Warnings {
			result.Warnings = append(result.Warnings, Warning{Code: w.Code, Symbol: demangle.Filter(w.Symbol), File: w.File, Line: w.Line, Why: w.Why, Hint: w.Hint, Override: w.Override})
		}
	}
	return inputs, errors.Join(errs...)
}

// placeOne finds the one image that was linked from an object.
func placeOne(r Request, images []*runpre.Image, d *objdiff.Diff) (*runpre.Placement, error) {
	var found []*runpre.Placement
	var in []string
	var errs []error
	for i, im := range images {
		p, err := im.Match(d.Pre)
		switch {
		case err == nil:
			found = append(found, p)
			in = append(in, r.Bases[i].Path)
		case fault.CodeOf(err) == "different-source":
			errs = append(errs, err)
		default:
			return nil, err
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, &fault.Error{Kind: fault.Unfit, Code: "ambiguous-base", What: "cannot tell where the code runs", Where: d.Pre.Path,
			Why: "its functions are in " + strings.Join(in, " and "), Hint: "build a patch for one of them at a time"}
	case len(images) == 1:
		return nil, errs[0]
	}
	return nil, &fault.Error{Kind: fault.Unfit, Code: "no-base", What: "cannot find the code that runs", Where: d.Pre.Path,
		Why:  fmt.Sprintf("none of %d images was linked from it", len(images)),
		Hint: "name the program or library that has it with --base; it must be built from this very source, with the same compiler and flags", Err: errors.Join(errs...)}
}

// changed gives the code that the patch replaces.
func changed(d *objdiff.Diff) []*objfile.Symbol {
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
		}
		r.Replaced = append(r.Replaced, one)
	}
}
