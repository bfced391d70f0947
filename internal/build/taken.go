package build

import (
	"errors"
	"slices"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
	"hotpatch/internal/runpre"
)

// untaken reports whether it is certain that an object is not in a base although the build has given
// it to the linker of that: the symbol table of what was rebuilt has nothing of it, the base has no
// code of it, and the base is what this source makes, as far as the code of another object shows.
func (f *finder) untaken(c *candidate, number int) (bool, error) {
	if c.unit == nil || c.unit.New || !slices.Contains(c.unit.Absent, number) {
		return false, nil
	}
	return f.without(c.diff.Pre, number)
}

// without reports whether a base has no code of an object that was not taken into what was rebuilt.
func (f *finder) without(pre *objfile.Object, number int) (bool, error) {
	im, err := f.image(number)
	if err != nil {
		return false, err
	}
	if _, err := im.MatchWith(pre, f.others.globals[number]); !nothingOf(err) {
		return false, nil
	}
	return f.others.fits(number), nil
}

// nothingOf reports whether a refusal says that no code of an object was found.
func nothingOf(err error) bool {
	e, ok := misfit(err)
	return ok && e.Placed == 0 && e.Differ == 0
}

func misfit(err error) (runpre.Misfit, bool) {
	var e *fault.Error
	if !errors.As(err, &e) {
		return runpre.Misfit{}, false
	}
	m, ok := e.Details.(runpre.Misfit)
	return m, ok
}

// fits reports whether a base is what the source makes, as far as one of its objects shows that is
// certain to be in it.
func (o *others) fits(number int) bool {
	if fits, known := o.fitting[number]; known {
		return fits
	}
	o.fitting[number] = false
	const most = 50
	tried := 0
	for _, x := range o.objects {
		if !slices.Contains(x.Images, number) || slices.Contains(x.Absent, number) {
			continue
		}
		if tried++; tried > most {
			break
		}
		obj, err := objfile.Open(x.File)
		if err != nil {
			continue // in another language, for one
		}
		im, err := o.f.image(number)
		if err != nil {
			return false
		}
		if at, err := im.MatchWith(obj, nil); err == nil && slices.ContainsFunc(at.Verdicts(), func(v runpre.Verdict) bool { return v.State == runpre.Placed }) {
			o.fitting[number] = true
			return true
		}
	}
	return false
}
