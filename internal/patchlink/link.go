package patchlink

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchfile"
	"hotpatch/trampoline"
)

// Meta is what the patch says of itself. Name and Version must be valid for
// patchfile; a record of the same kind in an object (include/hotpatch.h) must
// say the same.
type Meta struct {
	Name        string
	Version     uint64
	Description string // may be empty
	CVEs        []string
	Overrides   []string // refusals that were overridden, by name
	Builder     string   // what built it, compiler included; may be empty

	// Libraries are what new code needs in addition to the libraries of the
	// images: names as for the compiler's -l, or paths.
	Libraries []string
}

// Report is what Link has made.
type Report struct {
	Patch     *patchfile.Patch // as read back from the file
	Functions []Replaced       // in the order of the inputs
	Bound     int              // places that are bound to the base
	Imports   []string         // symbols that are left to the dynamic linker, in order
	Moved     []string         // of them those that another object has defined before the change
	Absent    []string         // changed functions that the base has no code of: inlined everywhere, or never used
	NoEntry   []Own            // functions into which no jump can be written: they are replaced for virtual calls only
	Own       []Own            // what the patch brings along although the program may have it too
}

// noEntry says why no jump can be written into a function of an image, or gives "". Where the
// process has no free memory near the image, a longer one is needed, so that this is not all.
func noEntry(im *image, vaddr uint64, code []byte) string {
	const around = 32 // bytes that may be padding
	f := trampoline.Function{Addr: vaddr, Code: code, After: make([]byte, around)}
	if im.file.ReadVaddr(f.After, vaddr+uint64(len(code))) != nil {
		f.After = nil
	}
	if before := make([]byte, around); vaddr > around && im.file.ReadVaddr(before, vaddr-around) == nil {
		for n := around; n > 0 && f.Before == nil; n-- {
			rest := before[around-n:]
			for len(rest) > 0 && trampoline.NopLen(rest) > 0 {
				rest = rest[min(trampoline.NopLen(rest), len(rest)):]
			}
			if len(rest) == 0 {
				f.Before = before[around-n:]
			}
		}
	}
	if _, err := trampoline.Judge(f, false); err != nil {
		if e, ok := err.(*fault.Error); ok {
			return e.Why
		}
		return err.Error()
	}
	return ""
}

// Own is a definition of the patch's own that the program may have too.
type Own struct {
	Name     string // mangled
	Why      string
	Override string // the override that has allowed it; "" if it needs none
}

// Replaced is a function that the patch replaces.
type Replaced struct {
	Name   string // mangled
	Module string
	Vaddr  uint64
	Size   uint64 // bytes, of the old one
}

// image is a base image that the patch is bound to.
type image struct {
	number  int // from 1 up
	buildID elfsym.BuildID
	name    string
	file    *elfsym.Image
	near    bool // something in the patch must be within 2 GiB of it
}

// linker makes one patch out of all inputs.
type linker struct {
	images    []*image
	fresh     map[string]bool // global symbols that some input adds
	claimed   map[place]string
	imports   map[string]bool
	global    map[string][]target // where the images have functions that were static, and are global
	severed   map[string]bool     // names that mean something else after the change: see objdiff.Diff
	overrides []string
	low       bool // the patch must be within the first 2 GiB
	report    Report
	refused   fault.List
}

// place is an address in an image.
type place struct {
	image *image
	vaddr uint64
}

// Input is an object that has changed, with where everything else is.
type Input struct {
	Diff *objdiff.Diff
	Base Base
}

// Link makes the patch library, at path out, which is written whole or not at
// all. What the inputs cannot be linked for is refused, everything at once: see
// docs/limits.md, "Building a patch: linking".
func Link(ctx context.Context, inputs []Input, m Meta, out string) (*Report, error) {
	l := &linker{fresh: make(map[string]bool), claimed: make(map[place]string), imports: make(map[string]bool), global: make(map[string][]target), severed: make(map[string]bool), overrides: m.Overrides}
	for _, s := range inputs {
		for y := range s.Diff.Severed {
			l.severed[y.Name] = true
		}
		for _, sec := range s.Diff.Ship {
			for _, y := range sec.Symbols {
				if isFresh(s.Diff, y) {
					l.fresh[y.Name] = true
				}
			}
		}
	}
	if err := l.globalised(inputs); err != nil {
		return nil, err
	}
	var objects []*object
	var libraries []string
	for _, s := range inputs {
		u := newUnit(l, s)
		if err := u.build(); err != nil {
			return nil, err
		}
		objects = append(objects, u.obj)
		for _, lib := range s.Base.Libraries() {
			if !slices.Contains(libraries, lib) {
				libraries = append(libraries, lib)
			}
		}
	}
	if err := l.refused.ErrOrNil(); err != nil {
		return nil, err
	}
	if len(l.report.Functions) == 0 && !slices.ContainsFunc(inputs, func(s Input) bool { return len(s.Diff.Changed) > 0 }) {
		return nil, &fault.Error{Kind: fault.NoChange, Code: "nothing-to-patch", What: "there is nothing to patch",
			Why: "the change only adds functions and variables, which nothing that runs refers to"}
	}
	if len(l.report.Functions) == 0 {
		return nil, &fault.Error{Kind: fault.Unfit, Code: "nothing-replaced", What: fmt.Sprintf("cannot build the patch %q", m.Name),
			Why:  fmt.Sprintf("none of the %d functions that changed is in the images as a function of its own (%s)", len(l.report.Absent), some(l.report.Absent)),
			Hint: "they were inlined everywhere or removed as unused: no function that runs contains the change"}
	}
	if err := l.together(); err != nil {
		return nil, err
	}
	objects = append([]*object{l.meta(m)}, objects...)
	if err := compose(ctx, objects, libraries, m.Libraries, out); err != nil {
		return nil, err
	}
	for name := range l.imports {
		l.report.Imports = append(l.report.Imports, name)
	}
	slices.Sort(l.report.Imports)
	p, err := patchfile.Open(out)
	if err != nil {
		return nil, err
	}
	l.report.Patch = p
	return &l.report, nil
}

// together refuses a patch that would have to be near the program and near a library: those are
// always further apart than 32-bit references reach (Linux maps libraries below the stack, and
// programs elsewhere).
func (l *linker) together() error {
	var program, library *image
	for _, im := range l.images {
		switch {
		case !im.near:
		case im.file.IsProgram():
			program = im
		default:
			library = im
		}
	}
	what := "code that is not position-independent"
	if program != nil {
		what = program.name
	}
	if library == nil || program == nil && !l.low {
		return nil
	}
	return &fault.Error{Kind: fault.Unfit, Code: "far-apart", What: "cannot make one patch", Where: what + ", " + library.name,
		Why:  "what it has for the one must be near that, and what it has for the other near the other, and a process has them further apart than 2 GiB",
		Hint: "make a patch for each: build once for every --base"}
}

// meta makes the object that says what the patch as a whole is.
func (l *linker) meta(m Meta) *object {
	o := &object{}
	r := newRecords(o)
	r.text(recordName, 0, m.Version, m.Name)
	if m.Description != "" {
		r.text(recordDescription, 0, 0, m.Description)
	}
	for _, id := range m.CVEs {
		r.text(recordCVE, 0, 0, id)
	}
	for _, im := range l.images {
		r.image(im)
	}
	for _, name := range m.Overrides {
		r.text(recordNote, noteOverride, 0, name)
	}
	if m.Builder != "" {
		r.text(recordNote, noteBuilder, 0, m.Builder)
	}
	o.noExecStack()
	return o
}

// use gives the number to an image when it is used first. Fault "no-build-id" if
// it cannot be told from others.
func (l *linker) use(file *elfsym.Image, name string) (*image, error) {
	id := file.BuildID()
	if len(id) == 0 {
		return nil, &fault.Error{Kind: fault.Unfit, Code: "no-build-id", What: "cannot bind the patch", Where: name,
			Why: "the image has no build-id, so the process that runs it could not be told from others", Hint: "link it with -Wl,--build-id"}
	}
	for _, im := range l.images {
		if im.buildID.Equal(id) {
			return im, nil
		}
	}
	im := &image{number: len(l.images) + 1, buildID: id, name: name, file: file}
	const most = 255 // docs/patch-format.md
	if im.number > most {
		return nil, &fault.Error{Kind: fault.Unfit, Code: "too-many-images", What: "cannot bind the patch", Where: name, Why: fmt.Sprintf("it would be bound to more than %d images", most)}
	}
	l.images = append(l.images, im)
	return im, nil
}

// refuse notes a refusal; other errors are given back.
func (l *linker) refuse(err error) error {
	switch e := err.(type) {
	case nil:
		return nil
	case *fault.Error:
		for _, known := range l.refused {
			if known.Code == e.Code && known.What == e.What && known.Where == e.Where {
				return nil
			}
		}
		l.refused = append(l.refused, e)
		return nil
	case fault.List:
		l.refused = append(l.refused, e...)
		return nil
	}
	return err
}

// isFresh reports whether a symbol is a global one that the change has added.
func isFresh(d *objdiff.Diff, y *objfile.Symbol) bool {
	return y.Bind != 0 && y.Name != "" && d.Twin[y] == nil
}

func some(names []string) string {
	const most = 5
	for i, n := range names {
		if i == most {
			return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
		}
		names[i] = elfsym.Demangle(n)
	}
	return strings.Join(names, ", ")
}
