package objdiff

import (
	"debug/dwarf"
	"fmt"
	"slices"
	"strings"
)

// Programs keep the constants of enumerations without a name in plain integers, so nothing but
// the names of the constants tells which enumeration continues which.

// namelessEnums refuses enumerations without a name, or of another name than before, whose
// constants mean other values than those that the running program has in memory.
func (d *differ) namelessEnums() {
	pre, post := d.full(d.pre), d.full(d.post)
	if pre.err != nil || post.err != nil {
		return
	}
	before, after := pre.enumsBeside(post), post.enumsBeside(pre)
	having := make(map[string][]*entry) // enumerators with their scope to the enumerations after the change
	same := make(map[string]bool)
	for _, q := range after {
		same[scope(q)+post.signature(q, 0)] = true
		for _, c := range q.children {
			k := scope(q) + c.name
			having[k] = append(having[k], q)
		}
	}
	said := make(map[string]bool)
	for _, p := range before {
		if same[scope(p)+pre.signature(p, 0)] {
			continue
		}
		shared := make(map[*entry]int)
		var likely []*entry // in order
		for _, c := range p.children {
			for _, q := range having[scope(p)+c.name] {
				if shared[q] == 0 {
					likely = append(likely, q)
				}
				shared[q]++
			}
		}
		for _, q := range likely {
			if 2*shared[q] < len(p.children) {
				continue
			}
			why := renumbered(p.children, q.children)
			if what := enumName(q); why != "" && !said[what+why] {
				said[what+why] = true
				d.refuseAt("struct-layout", what, q.file, q.line, AllowLayout, why+"; what the running program has in memory is numbered as before", enumHint)
			}
		}
	}
}

const enumHint = "leave the values as they are, and give new enumerators values of their own, behind the others"

// enumsBeside gives the enumerations of which the other build has none of the name.
func (i *debugInfo) enumsBeside(other *debugInfo) (list []*entry) {
	paired := make(map[*entry]bool) // by the name of a typedef
	for k, defs := range i.types {
		if !strings.HasPrefix(k, "typedef ") || len(other.types[k]) == 0 {
			continue
		}
		for _, n := range defs {
			if t := i.entries[n.typ]; t != nil && t.tag == dwarf.TagEnumerationType && t.name == "" && len(other.distinct(k)) > 0 {
				paired[t] = true
			}
		}
	}
	for _, n := range i.enums {
		if !paired[n] && (n.name == "" || len(other.types["enum "+qualified(n)]) == 0) {
			list = append(list, n)
		}
	}
	return list
}

// scope gives what is around a type, as text.
func scope(n *entry) string { return strings.TrimSuffix(qualified(n), n.name) }

// enumName gives an enumeration's name, or some of its enumerators.
func enumName(n *entry) string {
	if n.name != "" {
		return "enum " + qualified(n)
	}
	var list []string
	for i, c := range n.children {
		if i == 3 {
			list = append(list, "...")
			break
		}
		list = append(list, c.name)
	}
	return fmt.Sprintf("enum %s{%s}", scope(n), strings.Join(list, ", "))
}

// renumbered says which enumerator has another value that meant another one before, or whose old
// value means another one now; or it gives "". One that merely has another value is a constant
// like a macro, and the number of the others grows with them.
func renumbered(p, q []*entry) string {
	p, q = withoutBounds(p), withoutBounds(q)
	for _, m := range p {
		for _, n := range q {
			if m.name != n.name || m.value == n.value {
				continue
			}
			for _, o := range q {
				if o.value == m.value && !hasEnumerator(p, o) {
					return fmt.Sprintf("%s was %d, which is %s now", m.name, m.value, o.name)
				}
			}
			for _, o := range p {
				if o.value == n.value && !hasEnumerator(q, o) {
					return fmt.Sprintf("%s is %d, which was %s", m.name, n.value, o.name)
				}
			}
		}
	}
	return ""
}

func hasEnumerator(list []*entry, n *entry) bool {
	return slices.ContainsFunc(list, func(m *entry) bool { return m.name == n.name && m.value == n.value })
}

// boundWords are those by which the number, or the greatest, of enumerators is called.
var boundWords = map[string]bool{"max": true, "num": true, "number": true, "nr": true, "count": true, "last": true, "limit": true, "size": true, "sentinel": true}

// withoutBounds leaves out the enumerators that stand for how many others there are: those that
// are called so, and are not below any other.
func withoutBounds(list []*entry) []*entry {
	bound := func(n *entry) bool {
		return slices.ContainsFunc(strings.Split(strings.ToLower(n.name), "_"), func(s string) bool { return boundWords[s] })
	}
	return slices.DeleteFunc(slices.Clone(list), func(n *entry) bool {
		return bound(n) && !slices.ContainsFunc(list, func(m *entry) bool { return m.value > n.value && !bound(m) })
	})
}

// otherEnum reports whether numbers of one enumeration stand for other things in another one.
// Enumerators are the same if their names are, without what all of an enumeration begin with.
// If none is the same, the numbers must at least be there.
func otherEnum(p *entry, pname string, q *entry, qname string) bool {
	if pname == qname && (pname != "" || slices.ContainsFunc(p.children, func(m *entry) bool {
		return slices.ContainsFunc(q.children, func(n *entry) bool { return m.name == n.name })
	})) {
		return false // they are compared on their own
	}
	x, y := withoutPrefix(p.children), withoutPrefix(q.children)
	shared := slices.ContainsFunc(x, func(m *entry) bool {
		return slices.ContainsFunc(y, func(n *entry) bool { return m.name == n.name })
	})
	if shared {
		return renumbered(x, y) != ""
	}
	return len(y) > 0 && slices.ContainsFunc(x, func(m *entry) bool {
		return !slices.ContainsFunc(y, func(n *entry) bool { return m.value == n.value })
	})
}

// withoutPrefix gives enumerators without the words that all their names begin with.
func withoutPrefix(list []*entry) (out []*entry) {
	common := ""
	for i, n := range list {
		if i == 0 {
			common = n.name
		}
		for !strings.HasPrefix(n.name, common) {
			common = common[:len(common)-1]
		}
	}
	common = common[:strings.LastIndexByte(common, '_')+1]
	for _, n := range list {
		m := *n
		m.name = strings.ToLower(strings.TrimPrefix(n.name, common))
		out = append(out, &m)
	}
	return out
}
