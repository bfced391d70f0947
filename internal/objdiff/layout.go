package objdiff

import (
	"debug/dwarf"
	"fmt"
	"slices"
	"strings"
)

// layouts refuses types whose layout differs: objects that the running program
// has made have the old one. All types that both builds know are compared, not
// only those that changed functions declare, because code can reach a type
// through a cast that debugging information does not tell.
//
// A type that only one build has is no change, nor are new enumerators, new
// names of members, and integers of another signedness.
func (d *differ) layouts() {
	pre, post := d.full(d.pre), d.full(d.post)
	if pre.err != nil || post.err != nil {
		return
	}
	for _, key := range sortedKeys(post.types) {
		if pre.err != nil || post.err != nil {
			return
		}
		p, q := pre.distinct(key), post.distinct(key)
		if len(p) == 0 || len(q) == 0 {
			continue
		}
		why := ""
		switch {
		case strings.Contains(key, "lambda"): // as compilers call them here
			why = d.layoutsByNumber(pre, p, post, q)
		case len(p) == 1 && len(q) == 1:
			why = compareLayout(pre, p[0], post, q[0])
		case !slices.Equal(signatures(pre, p), signatures(post, q)):
			why = "several types have this name, and they are not those of before"
		default:
			for k := range p {
				if why == "" {
					why = compareLayout(pre, p[k], post, q[k])
				}
			}
		}
		switch {
		case why == "":
		case p[0].tag == dwarf.TagEnumerationType && q[0].tag == dwarf.TagEnumerationType:
			d.refuseAt("struct-layout", key, q[0].file, q[0].line, AllowLayout, why+"; objects that exist have the old values", enumHint)
		default:
			d.refuseAt("struct-layout", key, q[0].file, q[0].line, AllowLayout, why+"; objects that exist have the old layout",
				"keep the layout, and hold new fields as shadow data beside the object (include/hotpatch.h)")
		}
	}
}

// distinct gives the types of a name, one for each layout.
func (i *debugInfo) distinct(key string) (list []*entry) {
	seen := make(map[string]bool)
	for _, n := range i.types[key] {
		if n.tag == dwarf.TagTypedef {
			if n = i.entries[n.typ]; n == nil || n.name != "" || n.declared {
				continue // the type has a name of its own, or is no aggregate
			}
			switch n.tag {
			case dwarf.TagStructType, dwarf.TagClassType, dwarf.TagUnionType, dwarf.TagEnumerationType:
			default:
				continue
			}
		}
		if s := i.signature(n, 0); !seen[s] {
			seen[s] = true
			list = append(list, n)
		}
	}
	return list
}

// signatures gives the layouts of types, and sorts both.
func signatures(i *debugInfo, list []*entry) (out []string) {
	of := make(map[*entry]string)
	for _, n := range list {
		of[n] = i.signature(n, 0)
		out = append(out, of[n])
	}
	slices.SortFunc(list, func(m, n *entry) int { return strings.Compare(of[m], of[n]) })
	slices.Sort(out)
	return out
}

// signature gives the layout of an aggregate as text.
func (i *debugInfo) signature(n *entry, depth int) string {
	i.steps += len(n.children)
	if !i.step() {
		return "?"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d {", sortOfType(n), n.size)
	for _, c := range n.children {
		switch {
		case c.declared:
		case n.tag == dwarf.TagEnumerationType:
			fmt.Fprintf(&b, "%s=%d;", c.name, c.value)
		default:
			fmt.Fprintf(&b, "%s %s@%s;", i.shape(c.typ, depth+1), c.name, c.where)
		}
	}
	return b.String() + "}"
}

const (
	maxTypeDepth = 50         // how deep types without names nest
	maxTypeSteps = 20_000_000 // members looked at for all types of an object
)

// shape gives as text what of a member's type matters to the layout of objects.
// Named aggregates stand for themselves: they are compared on their own.
func (i *debugInfo) shape(off dwarf.Offset, depth int) string {
	name := ""
	for range maxTypeDepth {
		n := i.entries[off]
		if n == nil || depth > maxTypeDepth {
			return "?"
		}
		switch n.tag {
		case dwarf.TagTypedef:
			name = qualified(n)
			off = n.typ
			continue
		case dwarf.TagConstType, dwarf.TagVolatileType, dwarf.TagRestrictType, dwarf.TagAtomicType:
			off = n.typ
			continue
		case dwarf.TagBaseType:
			return fmt.Sprintf("%s%d", baseClass(n.encoding), n.size)
		case dwarf.TagEnumerationType:
			return fmt.Sprintf("int%d", n.size)
		case dwarf.TagPointerType, dwarf.TagReferenceType, dwarf.TagRvalueReferenceType:
			return "pointer"
		case dwarf.TagPtrToMemberType:
			if t := i.entries[n.typ]; t != nil && t.tag == dwarf.TagSubroutineType {
				return "pointer to member function"
			}
			return "pointer to member"
		case dwarf.TagArrayType:
			s := i.shape(n.typ, depth+1)
			for _, c := range n.children {
				s += fmt.Sprintf("[%d]", c.value)
			}
			return s
		case dwarf.TagStructType, dwarf.TagClassType, dwarf.TagUnionType:
			if n.name != "" {
				name = qualified(n)
			}
			if name != "" {
				return sortOfType(n) + " " + name
			}
			return i.signature(n, depth)
		}
		return fmt.Sprintf("%s of %d bytes", n.tag, n.size)
	}
	return "?"
}

// baseClass gives the sort of a base type by its DW_ATE encoding (DWARF 5,
// 7.8): signedness makes no difference to what an object holds.
func baseClass(encoding int64) string {
	switch encoding {
	case 0x02, 0x05, 0x06, 0x07, 0x08, 0x10, 0x11, 0x12:
		return "int"
	case 0x04:
		return "float"
	}
	return fmt.Sprintf("base(0x%x)", encoding)
}

// compareLayout says how two layouts differ, or gives "".
func compareLayout(pi *debugInfo, p *entry, qi *debugInfo, q *entry) string {
	if p.tag == dwarf.TagEnumerationType {
		return compareEnum(p, q)
	}
	if p.size != q.size {
		return fmt.Sprintf("its size was %d bytes, and is %d", p.size, q.size)
	}
	// Members without a counterpart of their name may have got another name.
	var gone, fresh []*entry
	for _, m := range p.children {
		n := memberLike(q, m)
		if m.declared {
			continue
		}
		if n == nil {
			gone = append(gone, m)
			continue
		}
		if why := compareMember(pi, m, qi, n); why != "" {
			return why
		}
	}
	for _, n := range q.children {
		if !n.declared && memberLike(p, n) == nil {
			fresh = append(fresh, n)
		}
	}
	for _, m := range gone {
		i := slices.IndexFunc(fresh, func(n *entry) bool {
			return n.tag == m.tag && compareMember(pi, m, qi, n) == ""
		})
		if i < 0 {
			return memberName(m) + " is gone"
		}
		fresh = slices.Delete(fresh, i, i+1)
	}
	if len(fresh) > 0 {
		return memberName(fresh[0]) + " is new"
	}
	return ""
}

func compareMember(pi *debugInfo, m *entry, qi *debugInfo, n *entry) string {
	name := memberName(m)
	if m.where != n.where {
		return fmt.Sprintf("%s was at %s, and is at %s", name, strings.TrimSpace(m.where), strings.TrimSpace(n.where))
	}
	if x, y := pi.shape(m.typ, 0), qi.shape(n.typ, 0); x != y {
		if len(x)+len(y) > 300 {
			return name + " has another type"
		}
		return fmt.Sprintf("%s was %s, and is %s", name, x, y)
	}
	if x, y := pi.otherInMemory(m.typ, qi, n.typ); x != "" {
		return fmt.Sprintf("%s was %s, and is %s", name, x, y)
	}
	return ""
}

// memberLike finds the member of a name. Base classes and members without a name
// have none; they are paired by where they are, as members with a new name are.
func memberLike(n *entry, m *entry) *entry {
	for _, c := range n.children {
		if !c.declared && c.tag == m.tag && c.name == m.name && c.name != "" {
			return c
		}
	}
	return nil
}

// memberName gives a member's name for people.
func memberName(n *entry) string {
	switch {
	case n.tag == dwarf.TagInheritance:
		return "a base class"
	case n.name == "":
		return "a member without a name"
	}
	return "its member " + n.name
}

// compareEnum says which value of an enumeration differs.
func compareEnum(p, q *entry) string {
	if p.size != q.size {
		return fmt.Sprintf("its size was %d bytes, and is %d", p.size, q.size)
	}
	for _, m := range p.children {
		for _, n := range q.children {
			if m.name == n.name && m.value != n.value {
				return fmt.Sprintf("%s was %d, and is %d", m.name, m.value, n.value)
			}
		}
	}
	return ""
}
