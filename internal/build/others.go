package build

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"slices"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
	"hotpatch/internal/rebuild"
	"hotpatch/internal/runpre"
)

// others are the other objects of the program. One of them may define what new code of an
// object defines as well, such as an inline variable, and then where that is must be found
// by way of its code.
type others struct {
	f       *finder
	objects []rebuild.Object
	whole   []bool // by base: objects has all that it was linked from

	wanting  map[string][]int             // names to those of objects that refer to them and do not define them
	defining map[string][]int             // names to those of objects that define them so that others may too
	parsed   map[int]*objfile.Object      // of objects
	placed   map[[2]int]*runpre.Placement // by base and object; nil: not in there
	exported map[int]map[string]bool      // by base
	globals  map[int]map[string]uint64    // by base: where global symbols are, once all objects were matched
	fitting  map[int]bool                 // by base: it is what the source makes
}

func newOthers(f *finder, objects []rebuild.Object, whole []bool) *others {
	return &others{f: f, objects: objects, whole: whole, parsed: make(map[int]*objfile.Object),
		placed: make(map[[2]int]*runpre.Placement), exported: make(map[int]map[string]bool), globals: make(map[int]map[string]uint64), fitting: make(map[int]bool)}
}

// base is an object of the program in one of the bases. It is a patchlink.Base.
type base struct {
	*runpre.Placement
	number int
	others *others
}

// Vague tells whether the program has a definition of its own: by the symbol tables of its
// images, or else by the other objects. The image that the patch is for comes first; what
// another one has counts if dynamic linkers could make one of both.
func (b base) Vague(y *objfile.Symbol) (patchlink.Target, patchlink.Presence, error) {
	o := b.others
	t, presence, err := o.in(b.number, y)
	own := y.Bind == elf.STB_GLOBAL && y.Where != elf.SHN_COMMON // whatever others have
	if presence != patchlink.Absent || y.Vis != elf.STV_DEFAULT || own || err != nil {
		return t, presence, err
	}
	for i := range o.f.bases {
		if i == b.number || !o.concerns(i, y.Name) {
			continue
		}
		if o.exports(i)[y.Name] {
			return t, patchlink.Exported, nil
		}
		if u, p, err := o.in(i, y); p == patchlink.Present || p == patchlink.Lost && err != nil {
			return u, p, err
		}
	}
	if where := o.outside(b.number, y.Name); where != "" {
		return t, patchlink.Unsure, o.unsure(b.number, y, "%s, which is none of the bases, has it; name that with --base if the process runs it too", where)
	}
	return t, patchlink.Absent, nil
}

// concerns reports whether a base may have a definition: it exports one, or an object that
// has one may be in it.
func (o *others) concerns(number int, name string) bool {
	return o.exports(number)[name] || slices.ContainsFunc(o.definedBy(name), func(i int) bool {
		return o.whole == nil || slices.Contains(o.objects[i].Images, number)
	})
}

// in tells whether one of the bases has a definition.
func (o *others) in(number int, y *objfile.Symbol) (patchlink.Target, patchlink.Presence, error) {
	im, err := o.f.image(number)
	if err != nil {
		return patchlink.Target{}, patchlink.Absent, err
	}
	t, presence, err := im.Vague(y)
	if presence != patchlink.Unsure || err != nil {
		return t, presence, err
	}
	return o.find(number, y)
}

// outside names a program or library of the tree that is none of the bases, has a
// definition, and may be in one process with a base.
func (o *others) outside(number int, name string) string {
	for _, i := range o.definedBy(name) {
		x := o.objects[i]
		if len(x.Libraries) > 0 {
			return x.Libraries[0]
		}
		if len(x.Programs) > 0 && !rebuild.Describe(o.f.bases[number].Path).Program {
			return x.Programs[0]
		}
	}
	return ""
}

func (o *others) unsure(number int, y *objfile.Symbol, format string, args ...any) error {
	return &fault.Error{Kind: fault.Unfit, Code: "shared-definition", What: "cannot tell where " + elfsym.Demangle(y.Name) + " is", Where: o.f.bases[number].String(), Why: fmt.Sprintf(format, args...)}
}

// Named gives where a symbol is that the object before the change does not refer to.
func (b base) Named(y *objfile.Symbol) (patchlink.Target, bool, error) {
	t, ok, err := b.Placement.Named(y)
	if ok || err != nil || len(b.others.definedBy(y.Name)) == 0 {
		return t, ok, err
	}
	u, presence, err := b.others.find(b.number, y)
	switch presence {
	case patchlink.Present:
		return u, true, nil
	case patchlink.Lost:
		return t, false, err
	}
	return t, false, nil
}

// find finds a definition in a base by way of an object that has it. With Unsure and Lost
// comes a fault that says why.
func (o *others) find(number int, y *objfile.Symbol) (patchlink.Target, patchlink.Presence, error) {
	t, presence, err := o.try(number, y)
	if presence == patchlink.Lost && o.globals[number] == nil {
		if err := o.settle(number); err != nil {
			return t, presence, err
		}
		t, presence, err = o.try(number, y)
	}
	return t, presence, err
}

func (o *others) try(number int, y *objfile.Symbol) (t patchlink.Target, presence patchlink.Presence, err error) {
	image := o.f.bases[number].String()
	presence = patchlink.Absent
	if !o.knows(number) {
		presence, err = patchlink.Unsure, o.unsure(number, y, "not all that %s was linked from is known", image)
	}
	for _, i := range o.definedBy(y.Name) {
		if !o.has(number, i) {
			continue
		}
		at, sym, e := o.place(number, i, y.Name)
		if e != nil {
			return t, patchlink.Lost, e
		}
		if at == nil {
			if o.knows(number) {
				presence, err = patchlink.Lost, o.unsure(number, y, "another file of %s has it, whose code is not found", image)
			}
			continue
		}
		t, e = at.Find(sym)
		if e == nil && (t.Kind == patchlink.Addr || t.Kind == patchlink.TPOff || t.Kind == patchlink.TLS || !y.IsFunc()) {
			return t, patchlink.Present, nil
		}
		presence, err = patchlink.Lost, o.unsure(number, y, "another file of %s has it, and no code that was found refers to it", image)
	}
	return t, presence, err
}

// knows reports whether all objects are known that a base was linked from.
func (o *others) knows(number int) bool { return number < len(o.whole) && o.whole[number] }

// given reports whether the linker of a base may have been given an object.
func (o *others) given(number, i int) bool {
	return !o.knows(number) || slices.Contains(o.objects[i].Images, number)
}

// has reports whether a base may have something of an object.
func (o *others) has(number, i int) bool {
	return o.given(number, i) && !slices.Contains(o.objects[i].Absent, number)
}

// settle finds all objects of a base, each with what the others have told: code of a few
// bytes is known by who calls it.
func (o *others) settle(number int) error {
	o.f.tell("finding the code of all files of %s", filepath.Base(o.f.bases[number].Path))
	im, err := o.f.image(number)
	if err != nil {
		return err
	}
	globals, conflicting := make(map[string]uint64), make(map[string]bool)
	var todo []int
	for i := range o.objects {
		if o.has(number, i) {
			todo = append(todo, i)
		}
	}
	for before := -1; len(todo) > 0 && len(globals) > before; {
		before = len(globals)
		var rest []int
		for _, i := range todo {
			obj, err := objfile.Open(o.objects[i].File)
			if err != nil {
				continue // in another language, for one
			}
			at, err := im.MatchWith(obj, globals)
			if err != nil {
				rest = append(rest, i)
				continue
			}
			if slices.ContainsFunc(at.Verdicts(), func(v runpre.Verdict) bool { return v.State == runpre.Ambiguous || v.State == runpre.Unknown }) {
				rest = append(rest, i)
			}
			for name, v := range at.Globals() {
				if old, ok := globals[name]; ok && old != v {
					conflicting[name] = true
				}
				globals[name] = v
			}
		}
		todo = rest
		for name := range conflicting {
			delete(globals, name)
		}
	}
	o.globals[number] = globals
	for k := range o.placed {
		if k[0] == number {
			delete(o.placed, k)
		}
	}
	return nil
}

// index notes what the objects define so that others may define it too.
func (o *others) index() {
	if o.defining != nil {
		return
	}
	o.defining, o.wanting = make(map[string][]int), make(map[string][]int)
	for i, x := range o.objects {
		f, err := elf.Open(x.File)
		if err != nil {
			continue // no object: what it was compiled to is not linked as it stands
		}
		list, _ := f.Symbols() // none is no error here
		f.Close()
		for _, s := range list {
			switch bind := elf.ST_BIND(s.Info); {
			case bind == elf.STB_LOCAL || s.Name == "":
			case s.Section == elf.SHN_UNDEF:
				o.wanting[s.Name] = append(o.wanting[s.Name], i)
			default:
				o.defining[s.Name] = append(o.defining[s.Name], i)
			}
		}
	}
}

// definedBy gives those of the objects that define a name so that others may too.
func (o *others) definedBy(name string) []int {
	o.index()
	return o.defining[name]
}

// place finds an object in a base, and in the object a symbol. It gives nil if the base was
// not linked from the object.
func (o *others) place(number, i int, name string) (*runpre.Placement, *objfile.Symbol, error) {
	if o.parsed[i] == nil {
		obj, err := objfile.Open(o.objects[i].File)
		if err != nil {
			return nil, nil, err
		}
		o.parsed[i] = obj
	}
	n := slices.IndexFunc(o.parsed[i].Symbols, func(y *objfile.Symbol) bool {
		return y.Name == name && y.Bind != elf.STB_LOCAL && y.Defined()
	})
	if n < 0 {
		return nil, nil, nil
	}
	k := [2]int{number, i}
	at, known := o.placed[k]
	if !known {
		im, err := o.f.image(number)
		if err != nil {
			return nil, nil, err
		}
		if at, err = im.MatchWith(o.parsed[i], o.globals[number]); err != nil {
			if code := fault.CodeOf(err); code != "different-source" && code != "ambiguous-code" {
				return nil, nil, err
			}
			at = nil
		}
		o.placed[k] = at
	}
	return at, o.parsed[i].Symbols[n], nil
}

// exports gives what a base exports. One that cannot be read is refused elsewhere.
func (o *others) exports(number int) map[string]bool {
	if o.exported[number] == nil {
		o.exported[number] = map[string]bool{}
		if im, err := readSymbols(o.f.bases[number].Path); err == nil {
			o.exported[number] = im.exports
		}
	}
	return o.exported[number]
}
