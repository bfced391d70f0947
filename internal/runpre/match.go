package runpre

import (
	"debug/elf"
	"fmt"
	"slices"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
)

// matcher matches one object.
type matcher struct {
	im     *Image
	pre    *objfile.Object
	funcs  []*function
	byKey  map[key]*function
	lines  [][]*function                 // in the order of the object, see neighbours
	bounds map[*objfile.Section][]uint64 // where constants without a name may begin
	data   map[datumKey]*datum
	depth  int
	known  map[factKey]uint64
	bad    map[factKey]error // what contradicts what is known
}

// most bounds the candidates of one function: one with more waits until a
// reference tells where it is.
const most = 64

// crowd bounds the places with code that begins like that of one function at
// which it is looked for.
const crowd = 512

// Misfit is the Details of the fault "different-source".
type Misfit struct {
	Functions int `json:"functions"` // of the object
	Placed    int `json:"placed"`    // that are in the image as they are
	Differ    int `json:"differ"`
	Ambiguous int `json:"ambiguous"` // code like theirs is there, and may be another's
}

// Match finds where the functions and variables of an object are. The object
// must be one from which the image may have been linked; sections per function
// and variable may be there in addition. The fault is "different-source" if
// more of its functions differ from the image than agree, or none agrees, and
// "ambiguous-code" if none can be told from others.
func (im *Image) Match(pre *objfile.Object) (*Placement, error) { return im.MatchWith(pre, nil) }

// MatchWith matches an object knowing where global symbols are, which other objects of the
// image have told: see Placement.Globals.
func (im *Image) MatchWith(pre *objfile.Object, globals map[string]uint64) (*Placement, error) {
	m := &matcher{im: im, pre: pre, byKey: make(map[key]*function), bounds: make(map[*objfile.Section][]uint64),
		data: make(map[datumKey]*datum), known: make(map[factKey]uint64), bad: make(map[factKey]error)}
	m.collect()
	for _, f := range m.funcs {
		m.candidates(f)
	}
	if len(globals) > 0 {
		for _, y := range pre.Symbols {
			if at, ok := globals[y.Name]; ok && y.Name != "" && y.Bind != elf.STB_LOCAL && y.Type != elf.STT_TLS && y.Type != elf.STT_GNU_IFUNC {
				m.learn(factKey{keyOf(y), atAddr}, at)
			}
		}
	}
	m.makeLines()
	for m.round() || m.neighbours() {
	}
	p := &Placement{m: m}
	// Every image that uses an inline function has it: where there are others,
	// only those tell.
	shared := !slices.ContainsFunc(m.funcs, func(f *function) bool { return f.sec.Group == nil })
	placed, differ, ambiguous, unknown := 0, 0, 0, 0
	for _, v := range p.Verdicts() {
		if v.Symbol.Section.Group != nil && !shared {
			continue
		}
		switch v.State {
		case Placed:
			placed++
		case Differs:
			differ++
		case Ambiguous:
			ambiguous++
		case Unknown:
			unknown++
		}
	}
	if len(m.funcs) > 0 && placed <= differ && (placed == 0 || differ > 1) || len(m.funcs) > 0 && placed == 0 {
		e := &fault.Error{Kind: fault.Unfit, Code: "different-source", What: "the image was not built from this object", Where: im.name,
			Why:     fmt.Sprintf("of the %d functions of %s, %d are in it as they are, and %d are different", len(m.funcs), pre.Path, placed, differ),
			Hint:    "compile with the compiler and the flags of the build that runs, without -flto",
			Details: Misfit{Functions: len(m.funcs), Placed: placed, Differ: differ, Ambiguous: ambiguous}}
		for _, f := range m.funcs {
			if f.miss != nil && f.placed == nil {
				e.Why += "; " + f.miss.Error()
				break
			}
		}
		if placed+differ+unknown == 0 && ambiguous > 0 {
			e.Code, e.What = "ambiguous-code", "cannot tell where the code of "+pre.Path+" is"
			e.Why = fmt.Sprintf("of its %d functions, %d are like code at several places or too short to tell, and none is at one place only", len(m.funcs), ambiguous)
			e.Hint = "give the debug file of the image"
		}
		return nil, e
	}
	return p, nil
}

// collect finds the object's functions.
func (m *matcher) collect() {
	for _, s := range m.pre.Sections {
		if s.Flags&elf.SHF_EXECINSTR == 0 || s.Flags&elf.SHF_ALLOC == 0 || s.Data == nil {
			continue
		}
		for _, y := range s.Symbols {
			if !y.IsFunc() || y.Size == 0 || y.Value > s.Size || y.Size > s.Size-y.Value {
				continue
			}
			k := keyOf(y)
			if f := m.byKey[k]; f != nil {
				f.syms = append(f.syms, y)
				f.hi = max(f.hi, y.Value+y.Size)
				continue
			}
			f := &function{syms: []*objfile.Symbol{y}, sec: s, lo: y.Value, hi: y.Value + y.Size, asked: make(map[uint64]bool)}
			m.byKey[k] = f
			m.funcs = append(m.funcs, f)
		}
	}
	note := func(x objfile.Ref) {
		if s := x.Sym.Section; s != nil && x.Off >= 0 {
			m.bounds[s] = append(m.bounds[s], x.Sym.Value+uint64(x.Off))
		}
	}
	for _, f := range m.funcs {
		f.decode()
		for i := range f.insts {
			for _, x := range f.insts[i].Refs {
				note(x)
			}
		}
	}
	for _, s := range m.pre.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 || s.Flags&elf.SHF_EXECINSTR != 0 {
			continue
		}
		for _, y := range s.Symbols {
			m.bounds[s] = append(m.bounds[s], y.Value, y.Value+y.Size)
		}
		for _, r := range s.Relocs {
			note(s.Resolve(r, r.Off))
		}
	}
	for _, list := range m.bounds {
		slices.Sort(list)
	}
}

// funcAt gives the function that begins where a symbol is.
func (m *matcher) funcAt(y *objfile.Symbol) *function {
	if y.Section == nil {
		return nil
	}
	return m.byKey[keyOf(y)]
}

// candidates compares a function with all places that it may be at.
func (m *matcher) candidates(f *function) {
	whole := m.im.full
	for _, y := range f.syms {
		for _, n := range m.im.named(y) {
			if (n.typ == elf.STT_FUNC || n.typ == elf.STT_GNU_IFUNC || n.typ == elf.STT_NOTYPE) && !slices.Contains(f.named, n.value) {
				f.named = append(f.named, n.value)
			}
		}
		whole = whole && (m.im.locals || y.Bind != elf.STB_LOCAL && isVisible(y))
	}
	if len(f.named) > 0 {
		for _, at := range f.named {
			m.try(f, at)
		}
		return
	}
	if whole {
		f.absent = true
		return
	}
	likely := m.im.likely(f)
	if len(likely) > crowd {
		f.many = true // a reference will tell, or nothing
		return
	}
	for _, at := range likely {
		m.try(f, at)
	}
	if len(f.cands) == 0 && !m.described(f) {
		for _, at := range m.im.anchored(f) {
			m.try(f, at)
		}
	}
	f.miss = nil // none of the others was meant
	if len(f.cands) == 0 {
		f.asked = make(map[uint64]bool) // a reference may tell yet which one was
	}
}

// isVisible reports whether a global symbol stays one when an image is linked.
func isVisible(y *objfile.Symbol) bool {
	return y.Vis != elf.STV_HIDDEN && y.Vis != elf.STV_INTERNAL
}

// described reports whether the object has unwind information for a function.
func (m *matcher) described(f *function) bool {
	return slices.ContainsFunc(m.pre.Frames, func(r *objfile.Frame) bool { return r.Code == f.sec && r.CodeOff == f.lo })
}

// try compares a function with one place, once.
func (m *matcher) try(f *function, at uint64) {
	if f.asked[at] || f.many {
		return
	}
	f.asked[at] = true
	s, err := m.compare(f, at)
	if err != nil {
		if f.miss == nil {
			f.miss, f.missAt = err, at
		}
		return
	}
	if len(f.cands) == most {
		f.cands, f.many, f.asked = nil, true, make(map[uint64]bool)
		return
	}
	f.cands = append(f.cands, s)
}

// round looks at all functions that are not placed yet; it reports whether
// anything new is known now.
func (m *matcher) round() (progress bool) {
	for _, f := range m.funcs {
		if f.placed != nil || f.err != nil {
			continue
		}
		at, told := m.known[factKey{f.key(), atAddr}]
		if told {
			f.many = false
			if !f.asked[at] {
				m.try(f, at)
			}
		}
		var left []*solution
		for _, s := range f.cands {
			if (!told || s.addr == at) && m.agrees(s) {
				left = append(left, s)
			}
		}
		if len(left) == 1 && !f.many && (told || m.convincing(f, left[0])) {
			f.placed = left[0]
			m.learn(factKey{f.key(), atAddr}, left[0].addr)
			m.take(left[0])
			progress = true
		}
	}
	return progress
}

// agrees reports whether what a candidate has solved does not contradict what is
// known, or what other functions can be.
func (m *matcher) agrees(s *solution) bool {
	for _, x := range s.facts {
		v, ok := m.known[x.factKey]
		if ok && v != x.value && x.sort != atPLT && x.sort != atGOT {
			return false
		}
		if g := m.byKey[x.key]; !ok && x.sort == atAddr && g != nil && g.placed == nil && len(g.cands) > 0 && !g.many &&
			!slices.ContainsFunc(g.cands, func(c *solution) bool { return c.addr == x.value }) {
			return false
		}
	}
	for _, x := range s.inners {
		g := m.byKey[x.key]
		switch {
		case g == nil:
			return false
		case g.placed != nil && !g.placed.has(x.off, x.at):
			return false
		case g.placed == nil && len(g.cands) > 0 && !slices.ContainsFunc(g.cands, func(c *solution) bool { return c.has(x.off, x.at) }):
			return false
		}
	}
	return true
}

// has reports whether an offset of the function is at an address.
func (s *solution) has(off, at uint64) bool {
	i, ok := slices.BinarySearchFunc(s.pos, off, func(p position, off uint64) int {
		switch {
		case p.pre < off:
			return -1
		case p.pre > off:
			return 1
		}
		return 0
	})
	if ok {
		return s.pos[i].run == at
	}
	// Padding in front of an instruction.
	return i > 0 && i < len(s.pos) && s.pos[i-1].run < at && at <= s.pos[i].run
}

// convincing reports whether a candidate can be trusted that no reference from
// elsewhere confirms: code of a few bytes can be anybody's.
func (m *matcher) convincing(f *function, s *solution) bool {
	if slices.Contains(f.named, s.addr) {
		return true
	}
	const long, short = 48, 12
	if s.fixed >= long {
		return true
	}
	agreed := s.proofs
	for _, x := range s.facts {
		if v, ok := m.known[x.factKey]; ok && v == x.value {
			agreed++
		}
	}
	return agreed > 0 && s.fixed >= short
}

// take learns all that a solution says.
func (m *matcher) take(s *solution) {
	for _, x := range s.facts {
		m.learn(x.factKey, x.value)
	}
	for _, x := range s.inners {
		// The parent of a cold part, and the reverse: nearly always without a
		// difference in padding, so that it is worth a try.
		if g := m.byKey[x.key]; g != nil && g.placed == nil && len(g.named) == 0 {
			m.try(g, x.at-x.off)
		}
	}
}

// learn notes a value for good, and what follows from it.
func (m *matcher) learn(k factKey, v uint64) {
	if old, ok := m.known[k]; ok {
		if old != v && k.sort != atPLT && k.sort != atGOT {
			m.bad[k] = fmt.Errorf("its place would be both %#x and %#x", old, v)
		}
		return
	}
	m.known[k] = v
	if k.sort != atAddr || k.sec == nil || k.sec.Flags&elf.SHF_EXECINSTR != 0 {
		return
	}
	for _, y := range k.sec.Symbols {
		if y.Value != k.off || y.Size == 0 || nameless(y) || y.Type == elf.STT_TLS || y.Bind == elf.STB_WEAK && k.sec.Group == nil {
			continue
		}
		d := m.datum(y, v)
		if d.err != nil {
			m.bad[k] = d.err
			return
		}
		m.take(d.s)
	}
}
