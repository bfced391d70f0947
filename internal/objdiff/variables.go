package objdiff

import (
	"debug/dwarf"
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"hotpatch/internal/objfile"
)

// variableTypes refuses variables that go on in the new code and have another type: what is
// in them is of the old one. Types of the same size are compared by what they hold and lead
// to, as members of structures are.
func (d *differ) variableTypes() {
	pre, post := d.full(d.pre), d.full(d.post)
	if pre.err != nil || post.err != nil {
		return
	}
	said := make(map[*entry]bool) // of variables in pieces
	for _, b := range d.post.Symbols {
		a := d.twin[b]
		if a == nil || a.IsFunc() || b.IsFunc() || !a.Defined() || !b.Defined() || a.Section != nil && isReadOnly(a.Section) {
			continue
		}
		p, q := pre.variable(a), post.variable(b)
		if p == nil || q == nil || said[q] {
			continue
		}
		x, y := pre.typeOf(p), post.typeOf(q)
		if x == y || pre.sameAggregate(p, post, q) {
			if x, y = pre.otherInMemory(pre.typed(p).typ, post, post.typed(q).typ); x == "" {
				continue
			}
		}
		said[q] = true
		d.refuse("changed-type", b, AllowLayout, fmt.Sprintf("it was of type %s, and is of type %s; what the running program has in it is of the old type", x, y),
			"leave it as it is, and give the new one another name")
	}
}

// variable gives the entry of a variable, or nil.
func (i *debugInfo) variable(y *objfile.Symbol) *entry {
	n := (*entry)(nil)
	if y.Section != nil {
		n = i.byPlace[codePlace{y.Section, y.Value}]
	}
	switch {
	case n != nil:
	case y.Bind == elf.STB_LOCAL && isStaticLocal(y):
		n = i.inPieces(y.Name)
	default:
		n = i.byName[y.Name]
	}
	if n == nil || n.tag != dwarf.TagVariable || i.typed(n) == nil {
		return nil
	}
	return n
}

// inPieces gives the entry of a variable that has no place, by the name of a part of it: clang puts
// parts of a variable, or what it leads to, in its place, as "f.p.body" or "p.0".
func (i *debugInfo) inPieces(name string) *entry {
	for k := strings.LastIndexByte(name, '.'); k > 0; k = strings.LastIndexByte(name[:k], '.') {
		for _, m := range []map[string]*entry{i.byName, i.locals} {
			if n := m[name[:k]]; n != nil && !n.placed {
				return n
			}
		}
	}
	return nil
}

// typed follows a variable's entry to the one that has its type.
func (i *debugInfo) typed(n *entry) *entry {
	if n = i.follow(n, func(n *entry) bool { return n.typ != 0 }); n == nil || n.typ == 0 {
		return nil
	}
	return n
}

// typeOf gives as text what of a variable's type matters to what it holds.
func (i *debugInfo) typeOf(n *entry) string { return i.shape(i.typed(n).typ, 0) }

// sameAggregate reports whether two variables are of structures that differ in their names
// only.
func (i *debugInfo) sameAggregate(p *entry, j *debugInfo, q *entry) bool {
	x, y := i.aggregate(i.typed(p).typ), j.aggregate(j.typed(q).typ)
	return x != nil && y != nil && i.signature(x, 0) == j.signature(y, 0)
}

// aggregate gives the structure or union that a type is another name of, or nil.
func (i *debugInfo) aggregate(off dwarf.Offset) *entry {
	for range maxTypeDepth {
		n := i.entries[off]
		if n == nil {
			return nil
		}
		switch n.tag {
		case dwarf.TagTypedef, dwarf.TagConstType, dwarf.TagVolatileType, dwarf.TagAtomicType:
			off = n.typ
		case dwarf.TagStructType, dwarf.TagClassType, dwarf.TagUnionType:
			if n.declared {
				return nil
			}
			return n
		default:
			return nil
		}
	}
	return nil
}

// claimByLine pairs the static variables of one name that a function has before and after, or some
// of them, by the lines on which they are declared. Two that are left over continue each other if
// they look alike. It reports whether the lines tell anything.
func (d *differ) claimByLine(x, y []*objfile.Symbol, claim func(a, b *objfile.Symbol)) bool {
	before, ok := d.lines(d.pre, x)
	after, ok2 := d.lines(d.post, y)
	if !ok || !ok2 {
		return false
	}
	var restX, restY []*objfile.Symbol
	for i, a := range x {
		if k := slices.Index(after, before[i]); k >= 0 && before[i] != "" {
			claim(a, y[k])
		} else {
			restX = append(restX, a)
		}
	}
	for k, b := range y {
		if after[k] == "" || !slices.Contains(before, after[k]) {
			restY = append(restY, b)
		}
	}
	if len(restX) == 1 && len(restY) == 1 && onlyLike(restX[0], restY) != nil {
		claim(restX[0], restY[0])
	}
	return len(restX) < len(x)
}

// lines gives the lines on which variables are declared, or "" where the line does not tell. ok is
// false if two are on one line.
func (d *differ) lines(o *objfile.Object, list []*objfile.Symbol) (lines []string, ok bool) {
	i := d.full(o)
	for _, y := range list {
		n := i.follow(i.byPlace[codePlace{y.Section, y.Value}], func(n *entry) bool { return n.line != 0 })
		at := ""
		if n != nil && n.line != 0 && n.tag == dwarf.TagVariable && d.sameLine != nil && d.sameLine(n.file, n.line) {
			at = location(n.file, n.line)
		}
		if at != "" && slices.Contains(lines, at) {
			return nil, false
		}
		lines = append(lines, at)
	}
	return lines, true
}

// pieces reports whether debugging information places none of some variables: then they are
// the parts into which a compiler has taken a structure.
func (d *differ) pieces(o *objfile.Object, list []*objfile.Symbol) bool {
	i := d.full(o)
	return i.err == nil && !slices.ContainsFunc(list, func(y *objfile.Symbol) bool { return i.byPlace[codePlace{y.Section, y.Value}] != nil })
}
