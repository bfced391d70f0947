package build

import (
	"debug/elf"
	"slices"

	"github.com/ianlancetaylor/demangle"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
	"hotpatch/internal/rebuild"
)

// withMembers adds what the linker would take into the bases now that it has not taken before:
// objects, such as those of an archive, that have what new code is the first of its file to refer to.
// They become a part of the patch, as new source files do, and are no part of the program any more.
func (f *finder) withMembers(changed []*candidate, r *Request, result *Result) ([]*candidate, error) {
	for at := 0; at < len(changed); at++ { // what is added may need more
		c := changed[at]
		if c.unit == nil || len(c.in) == 0 {
			continue
		}
		known := make(map[string]bool)
		for _, y := range c.diff.Pre.Symbols {
			known[y.Name] = true
		}
		for _, y := range c.diff.Post.Symbols {
			if y.Where != elf.SHN_UNDEF || y.Bind != elf.STB_GLOBAL || y.Name == "" || known[y.Name] {
				continue
			}
			n, images, err := f.member(c, y.Name)
			if err != nil {
				return changed, err
			}
			if len(images) == 0 {
				continue
			}
			x := &f.others.objects[n]
			m, err := f.asNew(x, images, changed, r)
			if err != nil {
				return changed, err
			}
			x.Images = slices.DeleteFunc(slices.Clone(x.Images), func(i int) bool { return slices.Contains(images, i) })
			changed = append(changed, m)
			f.tell("%s becomes a part of the patch: %s is the first to need %s of it", x.Source, c.name(), demangle.Filter(y.Name))
			result.Source.Elsewhere = slices.DeleteFunc(result.Source.Elsewhere, func(u Unit) bool { return u.Untaken && u.Output == m.unit.Output })
			result.Source.Units = slices.DeleteFunc(result.Source.Units, func(u Unit) bool { return u.Output == m.unit.Output })
			one := unitOf(*m.unit)
			one.Differs = true
			result.Source.Units = append(result.Source.Units, one)
		}
	}
	return changed, nil
}

// asNew takes an object, as it is after the change, for one that is new.
func (f *finder) asNew(x *rebuild.Object, images []int, changed []*candidate, r *Request) (*candidate, error) {
	if x.Assembler {
		return nil, &fault.Error{Kind: fault.Unfit, Code: "new-source-file", What: "cannot patch in what was not linked before", Where: x.Source,
			Why: "new code is the first to need it, and it is in assembler, in which nothing tells functions apart", Hint: "put what is needed into a C or C++ file"}
	}
	u := &rebuild.Unit{Source: x.Source, Output: x.Source, Post: x.File, New: true, Untaken: true, Images: images}
	for _, c := range changed {
		if c.unit != nil && c.unit.Pre == x.File {
			u.Output, u.Post, u.Because = c.unit.Output, c.unit.Post, c.unit.Because
		}
	}
	d, err := r.unit(u, r.sameLine)
	if err != nil {
		return nil, err
	}
	m := &candidate{diff: d, unit: u}
	_, err = f.find(m)
	return m, err
}

// member gives the only object that has a name and was given to the linker of the bases that have an
// object, and those of the bases into which it was not taken. There are none if that is not certain.
func (f *finder) member(c *candidate, name string) (object int, images []int, err error) {
	o := f.others
	object = -1
	for _, p := range c.in {
		if !o.knows(p.base) {
			return 0, nil, nil
		}
		for _, i := range o.definedBy(name) {
			if !o.given(p.base, i) {
				continue
			}
			if object >= 0 && object != i || !slices.Contains(o.objects[i].Absent, p.base) {
				return 0, nil, nil
			}
			object = i
		}
	}
	if object < 0 {
		return 0, nil, nil
	}
	pre, err := objfile.Open(o.objects[object].File)
	if err != nil {
		return 0, nil, err
	}
	for _, p := range c.in {
		if !o.given(p.base, object) || o.exports(p.base)[name] {
			continue
		}
		if out, err := f.without(pre, p.base); err != nil || !out {
			return 0, nil, err
		}
		images = append(images, p.base)
	}
	return object, images, nil
}
