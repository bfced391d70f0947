package objdiff

import (
	"fmt"
	"strings"
)

// prototypes refuses functions that take or return other things than before, if the code
// before the change has taken their address: whoever has kept it calls them as they were.
func (d *differ) prototypes() {
	pre, post := d.full(d.pre), d.full(d.post)
	if pre.err != nil || post.err != nil || len(d.out.Changed) == 0 {
		return
	}
	kept := d.addressed()
	for _, f := range d.out.Changed {
		if !kept[f.Pre] {
			continue
		}
		p, ok := pre.prototype(pre.byPlace[codePlace{f.Pre.Section, f.Pre.Value}])
		q, ok2 := post.prototype(post.byPlace[codePlace{f.Post.Section, f.Post.Value}])
		if ok && ok2 && p != q {
			d.refuse("changed-prototype", f.Post, AllowPrototype, fmt.Sprintf("it was %s, and is %s; the code before the change has given its address to somebody, who may have kept it", p, q),
				"leave it as it is, and give the new one another name")
		}
	}
}

// prototype gives as text what a function takes and returns, as far as it matters to callers.
func (i *debugInfo) prototype(n *entry) (string, bool) {
	if n == nil {
		return "", false
	}
	typed := i.follow(n, func(n *entry) bool { return n.typ != 0 })
	result := "void"
	if typed != nil && typed.typ != 0 {
		result = i.shape(typed.typ, 0)
	}
	named := i.follow(n, func(n *entry) bool { return len(n.formals) > 0 })
	var list []string
	if named != nil {
		for _, p := range named.formals {
			t := i.follow(p, func(n *entry) bool { return n.typ != 0 })
			if t == nil || t.typ == 0 {
				return "", false
			}
			list = append(list, i.shape(t.typ, 0))
		}
	}
	return result + " (" + strings.Join(list, ", ") + ")", true
}
