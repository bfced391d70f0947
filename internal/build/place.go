package build

import (
	"context"
	"debug/elf"
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
	"hotpatch/internal/rebuild"
	"hotpatch/internal/runpre"
)

// candidate is an object whose code has changed, and where it was found.
type candidate struct {
	diff *objdiff.Diff
	unit *rebuild.Unit // nil if only the objects are known
	in   []found
	has  []string // images that have the code after the change
	left bool     // the linker has taken it into none of the images
}

// found is an image that has an object.
type found struct {
	base int
	at   *runpre.Placement
}

// finder finds the images that have objects.
type finder struct {
	bases  []Base
	images []*runpre.Image // nil: not read yet
	tell   func(string, ...any)
	others *others
}

func (f *finder) image(i int) (*runpre.Image, error) {
	if f.images[i] == nil {
		f.tell("reading %s", filepath.Base(f.bases[i].Path))
		im, err := runpre.Open(f.bases[i].Path, f.bases[i].Debug...)
		if err != nil {
			return nil, err
		}
		f.images[i] = im
	}
	return f.images[i], nil
}

// place finds for each object that has changed the images that have it. Several images
// may: each has its own copy, and all are patched.
func (r *Request) place(ctx context.Context, changed []*candidate, tell func(string, ...any), result *Result) ([]patchlink.Input, error) {
	f := &finder{bases: r.Bases, images: make([]*runpre.Image, len(r.Bases)), tell: tell}
	f.others = newOthers(f, r.objects, r.whole)
	var errs []error
	var fixed []string // objects of which images have the code after the change
	for _, c := range changed {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		tell("finding the code of %s", c.name())
		elsewhere, err := f.find(c)
		if err != nil {
			errs = append(errs, err)
			if len(c.has) > 0 {
				fixed = append(fixed, c.name()+" in "+strings.Join(c.has, ", "))
			}
		}
		if elsewhere {
			one := unitOf(*c.unit)
			one.Differs, one.Untaken = true, c.left
			result.Source.Elsewhere = append(result.Source.Elsewhere, one)
		}
	}
	changed, err := f.withMembers(changed, r, result)
	if err != nil {
		errs = append(errs, err)
	}
	single(changed)
	var inputs []patchlink.Input
	for _, c := range changed {
		for _, p := range c.in {
			if err := f.static(p.base); err != nil {
				errs = append(errs, err)
				continue
			}
			if err := p.at.Check(changedCode(c.diff)); err != nil {
				if f.fixed(c, p.base) {
					fixed = append(fixed, c.name()+" in "+r.Bases[p.base].String())
				}
				errs = append(errs, err)
				continue
			}
			if err := r.foldedWith(f, c, p.base); err != nil {
				errs = append(errs, err)
				continue
			}
			if e := r.elsewhere(c, p, result); e != nil {
				errs = append(errs, e)
				continue
			}
			inputs = append(inputs, patchlink.Input{Diff: c.diff, Base: base{p.at, p.base, f.others}})
		}
		if len(c.in) > 0 {
			if w := r.alsoIn(c); w != nil {
				result.Warnings = append(result.Warnings, *w)
			}
			for _, w := range c.diff.Warnings {
				if w.Code == "no-debug-info" && c.unit != nil && c.unit.New {
					continue // there was nothing before
				}
				result.Warnings = append(result.Warnings, Warning{Code: w.Code, Symbol: demangle.Filter(w.Symbol), File: w.File, Line: w.Line, Why: w.Why, Hint: w.Hint, Override: w.Override})
			}
		}
	}
	if len(fixed) > 0 && len(fixed) == len(errs) && len(inputs) == 0 {
		return nil, &fault.Error{Kind: fault.NoChange, Code: "already-fixed", What: "there is nothing to patch",
			Why: "what runs has the code after the change already: " + strings.Join(fixed, ", "), Details: result.Source}
	}
	if len(errs) == 0 && len(inputs) == 0 && !slices.ContainsFunc(changed, func(c *candidate) bool { return !c.left }) {
		return nil, untaken(result.Source)
	}
	if len(errs) == 0 && len(inputs) == 0 {
		e := f.nowhere(changed[0], nil)
		e.Details = result.Source
		return nil, e
	}
	return inputs, errors.Join(errs...)
}

// fixed reports whether an image has the code of an object after the change.
func (f *finder) fixed(c *candidate, base int) bool {
	im, err := f.image(base)
	if err != nil {
		return false
	}
	at, err := im.MatchWith(c.diff.Post, f.others.globals[base])
	if err != nil {
		return false
	}
	var after []*objfile.Symbol
	for _, g := range c.diff.Changed {
		after = append(after, g.Post)
	}
	return len(after) > 0 && at.Has(after)
}

// elsewhere refuses an image that has other code than the object for functions which the patch
// leaves alone: then it was built from another source or with other flags, and what the new code
// takes for granted, such as where a member of a structure is, may be otherwise there. The fault is
// "base-differs".
func (r *Request) elsewhere(c *candidate, p found, result *Result) error {
	var differ []string
	var first runpre.Verdict
	for _, v := range p.at.Verdicts() {
		if v.State != runpre.Differs || v.Symbol.Section.Group != nil || v.Symbol.Type == elf.STT_GNU_IFUNC {
			continue // inline functions may be those of other objects
		}
		if len(differ) == 0 {
			first = v
		}
		differ = append(differ, demangle.Filter(v.Symbol.Name))
	}
	if len(differ) == 0 {
		return nil
	}
	base := r.Bases[p.base].String()
	why := fmt.Sprintf("its code of %s is not that of %s (%s)", differ[0], c.name(), first.Why)
	if n := len(differ) - 1; n > 0 {
		why += fmt.Sprintf(", nor that of %d other functions", n)
	}
	hint := "build with the compiler, the flags and the source of the build that runs"
	if slices.Contains(r.Allow, objdiff.AllowBase) {
		result.Warnings = append(result.Warnings, Warning{Code: "base-differs", Symbol: differ[0], File: base, Why: why, Hint: hint, Override: objdiff.AllowBase})
		return nil
	}
	return &fault.Error{Kind: fault.Unfit, Code: "base-differs", What: "the image was built otherwise", Where: base, Why: why,
		Hint: hint + "; or allow it by the name " + objdiff.AllowBase, Details: differ}
}

// alsoIn warns of what goes on with the old code of an object: libraries and, for a patch of
// libraries, programs that have it too and are none of the bases. They may be in the same process.
func (r *Request) alsoIn(c *candidate) *Warning {
	if c.unit == nil {
		return nil
	}
	list := slices.Clone(c.unit.Libraries)
	if !slices.ContainsFunc(c.in, func(p found) bool { return rebuild.Describe(r.Bases[p.base].Path).Program }) {
		list = append(list, c.unit.Programs...)
	}
	if len(list) == 0 {
		return nil
	}
	const most = 5
	if n := len(list) - most; n > 0 {
		list = append(list[:most], fmt.Sprintf("and %d more", n))
	}
	return &Warning{Code: "also-linked", Symbol: c.name(), Why: "it is also linked into " + strings.Join(list, ", ") + ", which is none of the bases: what the process has of that goes on with the old code",
		Hint: "make a patch for each that the process runs: build once for every --base"}
}

func (c *candidate) name() string {
	if c.unit != nil {
		return c.unit.Source
	}
	return filepath.Base(c.diff.Pre.Path)
}

// find finds the images that have an object. elsewhere is true if it is certain that
// none has.
func (f *finder) find(c *candidate) (elsewhere bool, err error) {
	var where []int
	if c.unit != nil {
		where = c.unit.Images // as it was linked
	}
	known := len(where) > 0
	if !known {
		for i := range f.bases {
			where = append(where, i)
		}
	}
	var errs []error
	none := true
	left := 0
	for _, i := range where {
		switch out, err := f.untaken(c, i); {
		case err != nil:
			return false, err
		case out:
			left++
			continue
		}
		at, err := f.match(c, i)
		var misfit *fault.Error
		switch {
		case err == nil:
			c.in = append(c.in, found{i, at})
		case errors.As(err, &misfit) && (misfit.Code == "different-source" || misfit.Code == "ambiguous-code"):
			errs = append(errs, err)
			if f.fixed(c, i) {
				c.has = append(c.has, f.bases[i].String())
			}
			m, ok := misfit.Details.(runpre.Misfit)
			none = none && ok && m.Placed == 0 && m.Ambiguous == 0
		default:
			return false, err
		}
	}
	c.left = left > 0 && left == len(where)
	switch {
	case known && len(errs) > 0:
		return false, errors.Join(errs...)
	case c.left:
		return true, nil
	case len(c.in) > 0:
		return false, nil
	case len(where) == 1 && c.unit == nil:
		return false, errs[0]
	case c.unit != nil && none:
		return true, nil
	}
	return false, f.nowhere(c, errors.Join(errs...))
}

// match finds an object in a base. Where its own code does not tell, that of the other
// objects may.
func (f *finder) match(c *candidate, base int) (*runpre.Placement, error) {
	im, err := f.image(base)
	if err != nil {
		return nil, err
	}
	at, err := im.MatchWith(c.diff.Pre, f.others.globals[base])
	if f.others.globals[base] != nil || len(f.others.objects) < 2 {
		return at, err
	}
	open := err
	if err == nil {
		open = at.Check(changedCode(c.diff))
	}
	if !undecided(open) {
		return at, err
	}
	if err := f.others.settle(base); err != nil {
		return nil, err
	}
	return im.MatchWith(c.diff.Pre, f.others.globals[base])
}

// undecided reports whether a refusal is for want of knowledge.
func undecided(err error) bool {
	var list fault.List
	var one *fault.Error
	switch {
	case errors.As(err, &list):
		return slices.ContainsFunc(list, func(e *fault.Error) bool { return undecided(e) })
	case errors.As(err, &one):
		m, ok := one.Details.(runpre.Misfit)
		return one.Code == "ambiguous-code" || one.Code == "code-not-found" || ok && m.Placed == 0 && m.Differ == 0
	}
	return false
}

// foldedWith refuses to replace functions where a linker has made one of all that are equal, and
// nothing says whose they are besides.
func (r *Request) foldedWith(f *finder, c *candidate, base int) error {
	im, err := f.image(base)
	if err != nil || base >= len(r.folded) || !r.folded[base] || im.HasSymbols() || len(c.diff.Changed) == 0 {
		return err
	}
	return &fault.Error{Kind: fault.Unfit, Code: "folded-functions", What: "cannot replace " + demangle.Filter(c.diff.Changed[0].Pre.Name), Where: f.bases[base].String(),
		Why: "it is linked with --icf, so that equal functions of different files are one, and without a symbol table nothing says which those are", Hint: "give the debug file of the image, or link without --icf"}
}

// static refuses a base into which nothing can be loaded.
func (f *finder) static(base int) error {
	im, err := f.image(base)
	if err != nil || !im.Static() {
		return err
	}
	return &fault.Error{Kind: fault.Unfit, Code: "static-executable", What: "cannot make a patch for this program", Where: f.bases[base].String(),
		Why: "it is statically linked: there is no dynamic loader in it, and so no patch can be loaded", Hint: "link the program dynamically to make it patchable"}
}

// nowhere is the answer that no image has an object.
func (f *finder) nowhere(c *candidate, err error) *fault.Error {
	e := &fault.Error{Kind: fault.Unfit, Code: "no-base", What: "cannot find the code that runs", Where: c.name(),
		Why:  fmt.Sprintf("none of %d images was linked from it", len(f.bases)),
		Hint: "name the program or library that has it with --base; it must be built from this very source, with the same compiler and flags", Err: err}
	if c.unit != nil && len(c.unit.Linked) > 0 {
		e.Why += "; the build links it into " + strings.Join(c.unit.Linked, ", ")
	}
	return e
}

// single leaves one of the objects that were compiled of one source and found in one
// image without being known to be linked into it, such as libtool's two: the one of
// which more is there.
func single(changed []*candidate) {
	type key struct {
		source string
		base   int
	}
	best := make(map[key]*candidate)
	count := func(c *candidate, base int) (n int) {
		for _, p := range c.in {
			if p.base == base {
				for _, v := range p.at.Verdicts() {
					if v.State == runpre.Placed {
						n++
					}
				}
			}
		}
		return n
	}
	for _, c := range changed {
		if c.unit == nil || len(c.unit.Images) > 0 {
			continue
		}
		for _, p := range c.in {
			k := key{c.unit.Source, p.base}
			if b := best[k]; b == nil || count(c, p.base) > count(b, p.base) {
				best[k] = c
			}
		}
	}
	for _, c := range changed {
		if c.unit != nil && len(c.unit.Images) == 0 {
			c.in = slices.DeleteFunc(c.in, func(p found) bool { return best[key{c.unit.Source, p.base}] != c })
		}
	}
}
