package build

import (
	"errors"

	"hotpatch/internal/fault"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
)

// tooFar reports whether a patch cannot be linked because code takes something to be near it.
func tooFar(err error) bool {
	var list fault.List
	if errors.As(err, &list) {
		for _, e := range list {
			if e.Code == "needs-pic" {
				return true
			}
		}
	}
	return fault.CodeOf(err) == "needs-pic"
}

// indirectly replaces the code after the change, where that was compiled in another way too, by
// code that takes nothing of other files to be near. Only what has changed before counts as
// changed. It reports whether there is any such code.
func (r *Request) indirectly(changed []*candidate, inputs []patchlink.Input) (bool, error) {
	any := false
	for _, c := range changed {
		if c.unit == nil || c.unit.Indirect == "" {
			continue
		}
		post, err := objfile.Open(c.unit.Indirect)
		if err != nil {
			return false, err
		}
		post.Path = c.diff.Post.Path
		only := make(map[*objfile.Symbol]bool)
		for _, f := range c.diff.Changed {
			only[f.Pre] = true
		}
		d, err := objdiff.Compare(c.diff.Pre, post, objdiff.Options{Allow: r.Allow, SameLine: r.sameLine, Only: only})
		if err != nil {
			return false, err
		}
		for i := range inputs {
			if inputs[i].Diff == c.diff {
				inputs[i].Diff = d
				any = true
			}
		}
		c.diff = d
	}
	return any, nil
}
