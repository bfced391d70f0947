package objdiff

import (
	"debug/dwarf"
	"fmt"
	"slices"
)

// reading compares what is in memory before and after the change, where it goes on: what
// pointers lead to was laid out by the old code, and is read by the new.
type reading struct {
	pre, post *debugInfo
	seen      map[[2]*entry]bool // what is found alike, or is being compared
}

// otherInMemory says how two types of one shape differ in what is behind pointers, or in what
// numbers stand for. It gives both types, or "" if nothing is certain to be read otherwise.
//
// Aggregates of one name are compared on their own. Signedness makes no difference, and void
// stands for anything, as bytes do for structures. Function pointers have a rule of their own.
func (i *debugInfo) otherInMemory(a dwarf.Offset, j *debugInfo, b dwarf.Offset) (was, is string) {
	r := &reading{i, j, make(map[[2]*entry]bool)}
	if !r.otherwise(a, b, 0) {
		return "", ""
	}
	was, is = i.spell(a, "", 0), j.spell(b, "", 0)
	if was == is {
		is += " of another layout"
	}
	return was, is
}

// otherwise reports whether memory that holds the one is read otherwise as the other.
func (r *reading) otherwise(a, b dwarf.Offset, depth int) bool {
	x, xname := r.pre.bare(a)
	y, yname := r.post.bare(b)
	if x == nil || y == nil || depth > maxTypeDepth || r.seen[[2]*entry{x, y}] || !r.pre.step() {
		return false // void, for one
	}
	r.seen[[2]*entry{x, y}] = true
	depth++
	switch {
	case x.declared || y.declared || x.tag == dwarf.TagSubroutineType || y.tag == dwarf.TagSubroutineType:
		return false
	case isAggregate(x) && isAggregate(y):
		if xname == yname && xname != "" && sortOfType(x) == sortOfType(y) {
			return false
		}
		if r.pre.signature(x, 0) != r.post.signature(y, 0) {
			return true
		}
		p, q := defined(x.children), defined(y.children)
		for k := range p {
			if r.otherwise(p[k].typ, q[k].typ, depth) {
				return true
			}
		}
		return false
	case x.tag == dwarf.TagArrayType && y.tag == dwarf.TagArrayType:
		return !sameLengths(x, y) || r.otherwise(x.typ, y.typ, depth)
	case x.tag == dwarf.TagArrayType: // the same as its elements in a row
		return r.otherwise(x.typ, b, depth)
	case y.tag == dwarf.TagArrayType:
		return r.otherwise(a, y.typ, depth)
	case isAggregate(x):
		return !isByte(y) && x.tag != dwarf.TagUnionType &&
			slices.ContainsFunc(defined(x.children), func(m *entry) bool { return r.otherwise(m.typ, b, depth) })
	case isAggregate(y):
		return !isByte(x) && y.tag != dwarf.TagUnionType &&
			slices.ContainsFunc(defined(y.children), func(m *entry) bool { return r.otherwise(a, m.typ, depth) })
	case isPointer(x) && isPointer(y):
		return r.otherwise(x.typ, y.typ, depth)
	case !isScalar(x) || !isScalar(y):
		return false
	}
	if r.pre.shape(a, 0) != r.post.shape(b, 0) {
		return true
	}
	return x.tag == dwarf.TagEnumerationType && y.tag == dwarf.TagEnumerationType && otherEnum(x, xname, y, yname)
}

// bare gives a type without typedefs and qualifiers, and its name: if it has none itself, that
// of the typedef that names it. It is nil for void.
func (i *debugInfo) bare(off dwarf.Offset) (n *entry, name string) {
	for range maxTypeDepth {
		if n = i.entries[off]; n == nil {
			return nil, ""
		}
		switch n.tag {
		case dwarf.TagTypedef:
			name = qualified(n)
		case dwarf.TagConstType, dwarf.TagVolatileType, dwarf.TagAtomicType, dwarf.TagRestrictType:
			name = ""
		default:
			if n.name != "" {
				name = qualified(n)
			}
			return n, name
		}
		off = n.typ
	}
	return nil, ""
}

// step counts what comparisons of types look at, and reports whether it is not too much.
func (i *debugInfo) step() bool {
	i.steps++
	if i.steps > maxTypeSteps && i.err == nil {
		i.err = fmt.Errorf("damaged debugging information: more than %d steps to compare its types", maxTypeSteps)
	}
	return i.err == nil
}

func defined(list []*entry) []*entry {
	return slices.DeleteFunc(slices.Clone(list), func(n *entry) bool { return n.declared })
}

func isAggregate(n *entry) bool {
	return n.tag == dwarf.TagStructType || n.tag == dwarf.TagClassType || n.tag == dwarf.TagUnionType
}

func isPointer(n *entry) bool {
	return n.tag == dwarf.TagPointerType || n.tag == dwarf.TagReferenceType || n.tag == dwarf.TagRvalueReferenceType
}

func isScalar(n *entry) bool {
	return n.tag == dwarf.TagBaseType || n.tag == dwarf.TagEnumerationType || n.tag == dwarf.TagPtrToMemberType || isPointer(n)
}

// isByte reports whether a type is one in which programs keep bytes of any meaning.
func isByte(n *entry) bool {
	return n.size == 1 && (n.tag == dwarf.TagEnumerationType || n.tag == dwarf.TagBaseType && baseClass(n.encoding) == "int")
}

// sameLengths compares the dimensions of two arrays, as far as they are known.
func sameLengths(x, y *entry) bool {
	return slices.EqualFunc(x.children, y.children, func(m, n *entry) bool { return m.value == n.value || m.value < 0 || n.value < 0 })
}

// spell gives a type as a declaration has it, without typedefs and qualifiers.
func (i *debugInfo) spell(off dwarf.Offset, inner string, depth int) string {
	n, name := i.bare(off)
	mark := ""
	switch {
	case depth > maxTypeDepth:
		return "?"
	case n == nil:
		name = "void"
	case isPointer(n):
		mark = "*"
		if n.tag != dwarf.TagPointerType {
			mark = "&"
		}
		if to, _ := i.bare(n.typ); to != nil && (to.tag == dwarf.TagArrayType || to.tag == dwarf.TagSubroutineType) {
			return i.spell(n.typ, "("+mark+inner+")", depth+1)
		}
		return i.spell(n.typ, mark+inner, depth+1)
	case n.tag == dwarf.TagArrayType:
		for _, c := range n.children {
			if c.value < 0 {
				inner += "[]"
			} else {
				inner += fmt.Sprintf("[%d]", c.value)
			}
		}
		return i.spell(n.typ, inner, depth+1)
	case n.tag == dwarf.TagSubroutineType:
		return i.spell(n.typ, inner+"()", depth+1)
	case n.tag == dwarf.TagBaseType:
		name = n.name
	case isAggregate(n) || n.tag == dwarf.TagEnumerationType:
		if name == "" {
			name = "{...}"
		}
		name = sortOfType(n) + " " + name
	default:
		name = i.shape(off, 0)
	}
	if inner != "" {
		name += " " + inner
	}
	return name
}
