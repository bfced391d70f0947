package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// A randomProgram is a C program of two files, and a change of it; both are made of a
// seed. Nothing in it is undefined or depends on the order of evaluation, so that every
// compiler makes the same answers of it.
//
// It is written in three forms: the files before and after the change, and the
// reference, which has all functions of both and one copy of every variable, and goes from one
// version to the other when it is told to. That is what a patched process must do.
//
// In the text of functions, @v3@ stands for a variable, @f3@ for a function and @c3@ for a
// constant table, whatever each form calls it.
type randomProgram struct {
	*rand.Rand
	cxx    bool
	vars   []*randomVar
	tables []*randomTable
	funcs  []*randomFunc
	order  [2][]int // of the functions in the files
	edits  []string // what the change is
}

// The versions.
const (
	before = 0
	after  = 1
)

// randomVar is a variable. One with an owner is a static one of that function.
type randomVar struct {
	id, unit int
	sort     string // u32, array, pair, double, pointer, function, own (thread-local)
	name     string
	static   bool
	init     string
	owner    *randomFunc
	in       [2]bool
	still    bool // nothing writes it before the change
}

// randomTable is a constant table, of numbers or texts.
type randomTable struct {
	id, unit int
	texts    bool
	values   [2][]string
}

// randomFunc is a function.
type randomFunc struct {
	id, unit int // unit -1: inline, in a header
	name     string
	sort     string // u32, u64, double, pair, out, varargs
	params   int
	how      [2]string // static, inline and attributes
	body     [2][]string
	in       [2]bool
	entry    bool // called by the program
	pointed  bool // its address is taken
	more     bool // it has one more parameter after the change
	below    int  // it calls only functions with a smaller id, so nothing calls itself
	cost     int
}

func (f *randomFunc) static() bool { return strings.HasPrefix(f.how[before], "static") }

// newRandomProgram makes a program. If all is, every variable is read before the change: a
// compiler does not store what is only written, and only debugging information tells that
// what has been written is lost then.
func newRandomProgram(seed uint64, cxx, all bool) *randomProgram {
	p := &randomProgram{Rand: rand.New(rand.NewPCG(seed, 1)), cxx: cxx}
	for unit := range 2 {
		for range 3 + p.IntN(6) {
			p.addVar(unit, nil, true)
		}
		for range 1 + p.IntN(3) {
			p.addTable(unit)
		}
	}
	n := 6 + p.IntN(14)
	for i := range n {
		unit := i % 2
		if i < n-4 && p.IntN(8) == 0 {
			unit = -1
		}
		p.addFunc(unit, i >= n-4, true, i)
	}
	for _, v := range p.vars {
		f := v.owner
		if f == nil && all {
			f = p.funcs[n-2]
			if f.unit != v.unit {
				f = p.funcs[n-1]
			}
		}
		if f != nil {
			p.readAll(f, v)
		}
	}
	for _, f := range p.funcs {
		p.order[before] = append(p.order[before], f.id)
		f.body[after] = slices.Clone(f.body[before])
		f.how[after] = f.how[before]
	}
	for range 1 + p.IntN(5) {
		p.edit()
	}
	p.order[after] = slices.Clone(p.order[before])
	for _, f := range p.funcs[n:] {
		p.order[after] = slices.Insert(p.order[after], p.IntN(len(p.order[after])+1), f.id)
	}
	if p.IntN(4) == 0 {
		p.Shuffle(len(p.order[after]), func(i, j int) {
			p.order[after][i], p.order[after][j] = p.order[after][j], p.order[after][i]
		})
		p.edits = append(p.edits, "reorder")
	}
	return p
}

func pick[T any](p *randomProgram, list ...T) T { return list[p.IntN(len(list))] }

func (p *randomProgram) literal() string { return fmt.Sprintf("%du", p.IntN(1000)) }

// addVar adds a variable, or a static one of a function.
func (p *randomProgram) addVar(unit int, owner *randomFunc, old bool) *randomVar {
	v := &randomVar{id: len(p.vars), unit: unit, owner: owner, in: [2]bool{old, true}, static: owner != nil || p.IntN(4) > 0}
	v.sort = pick(p, "u32", "u32", "u32", "array", "array", "pair", "double", "pointer", "function", "own")
	if owner != nil {
		v.sort = pick(p, "u32", "u32", "array", "pair", "own")
	}
	v.name = fmt.Sprintf("v%d", p.countVars(unit))
	if !v.static {
		v.name = fmt.Sprintf("g%d", v.id)
	}
	if owner != nil {
		v.name = pick(p, "count", "last", "seen")
		for slices.ContainsFunc(p.vars, func(o *randomVar) bool { return o.owner == owner && o.name == v.name }) {
			v.name += "x"
		}
	}
	v.still = v.sort == "u32" && old && p.IntN(5) == 0
	list := func(n int) string {
		var s []string
		for range n {
			s = append(s, p.literal())
		}
		return "{" + strings.Join(s, ", ") + "}"
	}
	zero := p.IntN(3) == 0
	switch v.sort {
	case "u32", "own":
		v.init = p.literal()
		if zero {
			v.init = "0"
		}
	case "array":
		v.init = list(8)
		if zero {
			v.init = "{0}"
		}
	case "pair":
		v.init = list(2)
		if zero {
			v.init = "{0, 0}"
		}
	case "double":
		v.init = fmt.Sprintf("%d.25", p.IntN(50))
	case "pointer":
		array := p.varOf(unit, "array", !old)
		if array == nil {
			v.sort, v.init = "u32", "5u"
			break
		}
		v.init = fmt.Sprintf("&@v%d@[%d]", array.id, p.IntN(8))
	case "function":
		f := p.pointee(unit)
		if f == nil {
			v.sort, v.init = "u32", "6u"
			break
		}
		v.init = fmt.Sprintf("@f%d@", f.id)
	}
	p.vars = append(p.vars, v)
	return v
}

// readAll lets a function read all of a variable.
func (p *randomProgram) readAll(f *randomFunc, v *randomVar) {
	s := ""
	switch v.sort {
	case "pair":
		s = fmt.Sprintf("r = mix(r, @v%d@.x);\nr = mix(r, @v%d@.y);", v.id, v.id)
	case "function":
		return // others call by it
	default:
		s = fmt.Sprintf("r = mix(r, %s);", p.read(f, v, "r"))
	}
	f.body[before] = append(f.body[before], s)
}

func (p *randomProgram) countVars(unit int) (n int) {
	for _, v := range p.vars {
		if v.unit == unit {
			n++
		}
	}
	return n
}

// varOf gives a variable that a file can use, or nil.
func (p *randomProgram) varOf(unit int, sort string, fresh bool) *randomVar {
	var list []*randomVar
	for _, v := range p.vars {
		if v.sort == sort && v.owner == nil && (v.unit == unit || !v.static && v.unit >= 0) && (v.in[before] || fresh) && v.in[after] {
			list = append(list, v)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return pick(p, list...)
}

// pointee gives a function to point to, or nil.
func (p *randomProgram) pointee(unit int) *randomFunc {
	var list []*randomFunc
	for _, f := range p.funcs {
		if f.unit == unit && f.sort == "u32" && f.params == 1 && !f.more && f.in[before] && f.in[after] && f.cost < 200 {
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		return nil
	}
	f := pick(p, list...)
	f.pointed = true
	return f
}

func (p *randomProgram) addTable(unit int) *randomTable {
	c := &randomTable{id: len(p.tables), unit: unit, texts: p.IntN(3) == 0}
	var list []string
	for range 8 {
		if c.texts {
			list = append(list, fmt.Sprintf("%q", pick(p, "one", "two", "three", "a longer text", "tail", "long tail")+pick(p, "", "!", " %u")))
		} else {
			list = append(list, p.literal())
		}
	}
	c.values = [2][]string{list, list}
	p.tables = append(p.tables, c)
	return c
}

// addFunc adds a function that can call those with an id below the given one.
func (p *randomProgram) addFunc(unit int, entry, old bool, below int) *randomFunc {
	f := &randomFunc{id: len(p.funcs), unit: unit, below: below, entry: entry && unit >= 0, in: [2]bool{old, true}, params: 1 + p.IntN(3)}
	f.sort = pick(p, "u32", "u32", "u32", "u32", "u64", "double", "pair", "out", "varargs")
	switch {
	case f.entry:
		f.sort, f.params = "u32", 2
	case p.IntN(3) == 0:
		f.sort, f.params = "u32", 1
	}
	how := "static"
	switch {
	case unit < 0 && p.cxx:
		how = "inline"
	case unit < 0:
		how = "static inline"
	case f.entry || p.IntN(4) == 0:
		how = ""
	}
	f.name = fmt.Sprintf("f%d", f.id)
	if how == "static" { // the same in both files
		n := 0
		for _, g := range p.funcs {
			if g.unit == unit && strings.HasPrefix(g.name, "h") {
				n++
			}
		}
		f.name = fmt.Sprintf("h%d", n)
	}
	if f.sort != "varargs" {
		how += pick(p, "", "", " __attribute__((noinline))", " __attribute__((cold))", " __attribute__((hot))")
	}
	f.how = [2]string{how, how}
	p.funcs = append(p.funcs, f)
	for unit >= 0 && p.IntN(3) == 0 {
		p.addVar(unit, f, old)
	}
	if same := p.twinBody(f); same != nil {
		f.body[before], f.cost = slices.Clone(same.body[before]), same.cost
	} else {
		for range 1 + p.IntN(6) {
			f.body[before] = append(f.body[before], p.statement(f, 2, !old))
		}
	}
	if !old {
		f.body[after] = f.body[before]
	}
	return f
}

// twinBody sometimes gives a function whose body another one can share word by word.
func (p *randomProgram) twinBody(f *randomFunc) *randomFunc {
	if p.IntN(6) > 0 || f.unit < 0 {
		return nil
	}
	for _, g := range p.funcs[:f.below] {
		owns := slices.ContainsFunc(p.vars, func(v *randomVar) bool { return v.owner == g })
		if g.unit == f.unit && g.sort == f.sort && g.params == f.params && !owns {
			return g
		}
	}
	return nil
}
