package objdiff

import (
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"hotpatch/internal/objfile"
)

// uses tells which functions refer to what, for one object.
type uses struct {
	of map[*objfile.Symbol][]*objfile.Symbol // function to the symbols that it refers to, in order of the first reference
	by map[*objfile.Symbol][]*objfile.Symbol // symbol to the functions that refer to it
}

// usesOf finds the references of all functions, with those of their parts.
func (d *differ) usesOf(o *objfile.Object) *uses {
	if u := d.uses[o]; u != nil {
		return u
	}
	u := &uses{of: make(map[*objfile.Symbol][]*objfile.Symbol), by: make(map[*objfile.Symbol][]*objfile.Symbol)}
	d.uses[o] = u
	type edge struct{ from, to *objfile.Symbol }
	seen := make(map[edge]bool)
	for _, y := range o.Symbols {
		if !y.IsFunc() || !isCode(y.Section) {
			continue
		}
		owner := y
		if p := d.parent(o, y); p != nil {
			owner = p
		}
		for _, r := range references(y) {
			if e := (edge{owner, r.Sym}); !seen[e] {
				seen[e] = true
				u.of[owner] = append(u.of[owner], r.Sym)
				u.by[r.Sym] = append(u.by[r.Sym], owner)
			}
		}
	}
	return u
}

// references gives what the code of a function refers to, in order.
func references(y *objfile.Symbol) (list []objfile.Ref) {
	s := y.Section
	insts, err := s.Decode(y.Value, y.Value+y.Size)
	if err != nil {
		for _, r := range s.Within(y.Value, y.Value+y.Size) {
			// Most have four bytes of the instruction behind the place.
			list = append(list, s.Resolve(r, r.Off+4))
		}
		return list
	}
	for _, in := range insts {
		list = append(list, in.Refs...)
		if in.HasTarget && len(in.Refs) == 0 {
			if r, leaves := target(y, in); leaves && r.Sym != y {
				list = append(list, r)
			}
		}
	}
	return list
}

// parent gives the function of which y is a part, or nil.
func (d *differ) parent(o *objfile.Object, y *objfile.Symbol) *objfile.Symbol {
	name, ok := parentOf(y.Name)
	if !ok {
		return nil
	}
	var found *objfile.Symbol
	for _, z := range d.functions(o)[name] {
		if z.Bind == elf.STB_LOCAL && z.File != y.File && y.File != "" {
			continue
		}
		if found != nil && (found.Section != z.Section || found.Value != z.Value) {
			return nil
		}
		found = z
	}
	return found
}

// functions gives the functions of an object by name.
func (d *differ) functions(o *objfile.Object) map[string][]*objfile.Symbol {
	m := d.byName[o]
	if m == nil {
		m = make(map[string][]*objfile.Symbol)
		for _, y := range o.Symbols {
			if y.IsFunc() && isCode(y.Section) {
				m[y.Name] = append(m[y.Name], y)
			}
		}
		d.byName[o] = m
	}
	return m
}

// statics finds the twins of the static variables of functions, by who refers
// to them.
func (d *differ) statics() {
	pre, post := d.staticGroups(d.pre), d.staticGroups(d.post)
	for _, name := range sortedKeys(pre) {
		p, q := pre[name], post[name]
		if len(q) == 0 {
			d.lost = append(d.lost, p...)
			continue
		}
		if len(p) == 1 && len(q) == 1 && p[0].Name == q[0].Name && namesOwner(p[0].Name) {
			d.pairUp(p[0], q[0])
			continue
		}
		d.matchStatics(name, p, q)
	}
}

// renamedOwners finds the twins of static variables of functions that have another name,
// other parameters or another scope than before: they are known by their own names, and who
// reaches them. Those that have none then are refused.
func (d *differ) renamedOwners() {
	group := func(o *objfile.Object, twins map[*objfile.Symbol]*objfile.Symbol) map[string][]*objfile.Symbol {
		m := make(map[string][]*objfile.Symbol)
		for _, y := range o.Symbols {
			if y.Section == nil || y.IsFunc() || y.Type == elf.STT_NOTYPE || !relevant(y) || !isStaticLocal(y) || isReadOnly(y.Section) || twins[y] != nil || len(numberedIn(y.Name)) > 0 {
				continue
			}
			k := plainName(y)
			if strings.HasPrefix(y.Name, "_ZGV") {
				k = "guard " + k
			}
			m[k] = append(m[k], y)
		}
		return m
	}
	pre, post := group(d.pre, d.rev), group(d.post, d.twin)
	for _, k := range sortedKeys(pre) {
		p, q := pre[k], post[k]
		for _, a := range p {
			var like []*objfile.Symbol
			for _, b := range q {
				if d.twin[b] == nil && onlyLike(a, []*objfile.Symbol{b}) != nil && (d.sameOwners(a, b) || ownerName(a) == ownerName(b) && ownerName(a) != "") {
					like = append(like, b)
				}
			}
			switch {
			case len(like) == 0:
			case len(like) == 1 && onlyLike(like[0], p) == a:
				d.pairUp(a, like[0])
			default:
				d.refuse("ambiguous-static", a, AllowStatic,
					fmt.Sprintf("the function that has it has another name or other parameters now, and %d static variables of that name do not tell which is which; its state would be lost", len(like)),
					"give the static variables names of their own before")
			}
		}
	}
	for _, a := range d.lost {
		if d.rev[a] == nil && !d.renumberedStatic(a) {
			d.lostStatic(a)
		}
	}
}

// ownerName gives the name of the function that a static variable of C++ is in, without
// parameters and scope.
func ownerName(y *objfile.Symbol) string {
	if !strings.HasPrefix(y.Name, "_Z") {
		return ""
	}
	name := display(y.Name)
	i := strings.LastIndex(name, "::")
	if i < 0 {
		return ""
	}
	name = strings.TrimSuffix(name[:i], " const")
	if j := strings.LastIndexByte(name, '('); j > 0 {
		name = name[:j]
	}
	return name[strings.LastIndexAny(name, ": ")+1:]
}

// staticGroups gives the static variables without a twin by base name.
func (d *differ) staticGroups(o *objfile.Object) map[string][]*objfile.Symbol {
	groups := make(map[string][]*objfile.Symbol)
	for _, y := range o.Symbols {
		if y.Bind != elf.STB_LOCAL || y.Section == nil || y.IsFunc() || y.Type == elf.STT_NOTYPE || !relevant(y) || !isStaticLocal(y) {
			continue
		}
		if d.twin[y] == nil && d.rev[y] == nil {
			k := y.File + "\x00" + baseName(y.Name)
			groups[k] = append(groups[k], y)
		}
	}
	return groups
}

// matchStatics pairs the variables of one name.
func (d *differ) matchStatics(name string, p, q []*objfile.Symbol) {
	_, name, _ = strings.Cut(name, "\x00")
	claims := make(map[*objfile.Symbol]map[*objfile.Symbol]bool) // pre to post
	claim := func(a, b *objfile.Symbol) {
		if claims[a] == nil {
			claims[a] = make(map[*objfile.Symbol]bool)
		}
		claims[a][b] = true
	}
	before, after := d.usesOf(d.pre), d.usesOf(d.post)
	users := make(map[*objfile.Symbol]bool)
	for _, b := range q {
		for _, g := range after.by[b] {
			users[g] = true
		}
	}
	for _, g := range sortedSymbols(users) {
		f := d.twin[g]
		if f == nil {
			continue
		}
		in := func(list []*objfile.Symbol) func(*objfile.Symbol) bool {
			return func(y *objfile.Symbol) bool { return !slices.Contains(list, y) }
		}
		x := slices.DeleteFunc(slices.Clone(before.of[f]), in(p))
		y := slices.DeleteFunc(slices.Clone(after.of[g]), in(q))
		switch {
		case len(x) == 0 || len(y) == 0:
		case len(x) == 1 && len(y) == 1:
			claim(x[0], y[0])
		case len(x) == len(y) && (d.sameShape(f, g) || sameNames(x, y) && d.pieces(d.pre, x) && d.pieces(d.post, y)):
			for i := range x {
				claim(x[i], y[i])
			}
		case d.claimByLine(x, y, claim):
		default: // by what tells them apart, if anything does
			for _, a := range x {
				if b := onlyLike(a, y); b != nil && onlyLike(b, x) == a {
					claim(a, b)
				}
			}
		}
	}
	// A function that was inlined on one side only: its callers stand for it.
	for _, a := range p {
		for _, b := range q {
			if len(claims[a]) == 0 && !claimed(claims, b) && d.sameOwners(a, b) && onlyLike(a, q) == b && onlyLike(b, p) == a {
				claim(a, b)
			}
		}
	}
	for _, a := range p {
		if len(claims[a]) == 1 {
			for b := range claims[a] {
				if claimedOnce(claims, b) {
					d.pairUp(a, b)
				}
			}
		}
	}
	left := slices.ContainsFunc(q, func(b *objfile.Symbol) bool { return d.twin[b] == nil })
	for _, a := range p {
		switch {
		case d.rev[a] != nil:
		case left:
			d.refuse("ambiguous-static", a, AllowStatic,
				fmt.Sprintf("static variables named %s: %d before, %d after, and the functions that use them do not tell which is which; its state would be lost",
					display(name), len(p), len(q)),
				"give a new static variable a name that the file does not have yet; leave the others where they are")
		default:
			d.lost = append(d.lost, a)
		}
	}
}

// sameNames reports whether two lists of variables have the same names in the same
// order, and the variables look alike. clang numbers the parts of a structure that
// it has taken apart.
func sameNames(x, y []*objfile.Symbol) bool {
	for i := range x {
		if x[i].Name != y[i].Name || onlyLike(x[i], y[i:i+1]) == nil {
			return false
		}
	}
	return true
}

func claimed(claims map[*objfile.Symbol]map[*objfile.Symbol]bool, b *objfile.Symbol) bool {
	for _, m := range claims {
		if m[b] {
			return true
		}
	}
	return false
}

func claimedOnce(claims map[*objfile.Symbol]map[*objfile.Symbol]bool, b *objfile.Symbol) bool {
	n := 0
	for _, m := range claims {
		if m[b] {
			n++
		}
	}
	return n == 1
}

// lostStatic refuses a static variable that is gone, if a function that used it
// is still there. Its state is lost when it comes back with a later patch.
func (d *differ) lostStatic(a *objfile.Symbol) {
	for _, f := range d.usesOf(d.pre).by[a] {
		if d.rev[f] != nil {
			if b := d.wholeOf(a); b != nil {
				d.refuse("removed-static", b, AllowStatic,
					fmt.Sprintf("the compiler had taken it apart and stored %s only, and stores all of it now, aligned to %d bytes: what the running program has in it would not count", a.Name, b.Section.Align),
					"leave its alignment, and what is done with its address, as they are")
				return
			}
			d.refuse("removed-static", a, AllowStatic,
				fmt.Sprintf("the static variable is gone, and %s, which used it, is still there", display(f.Name)),
				"leave the variable in the source, with a reference to it")
			return
		}
	}
}

// wholeOf gives the variable after the change of which a was a part, if a compiler had taken it
// apart and does not any more. It is nil for a static variable of a function.
func (d *differ) wholeOf(a *objfile.Symbol) *objfile.Symbol {
	k := strings.LastIndexByte(a.Name, '.')
	i := d.full(d.pre)
	if k < 0 || i.err != nil || i.byPlace[codePlace{a.Section, a.Value}] != nil || i.inPieces(a.Name) == nil {
		return nil
	}
	for _, b := range d.post.Symbols {
		if b.Name == a.Name[:k] && b.Bind == elf.STB_LOCAL && b.Section != nil && !b.IsFunc() && d.twin[b] == nil {
			return b
		}
	}
	return nil
}

// movedInside refuses a variable that is gone while a function that used it has got a static
// one of its name.
func (d *differ) movedInside() {
	for _, a := range d.out.Removed {
		if a.IsFunc() || a.Section == nil || isReadOnly(a.Section) || isStaticLocal(a) {
			continue
		}
		for _, b := range d.out.New {
			if b.IsFunc() || b.Section == nil || !isStaticLocal(b) || a.Size != b.Size || a.Type != b.Type || plainName(a) != plainName(b) {
				continue
			}
			for _, g := range d.usesOf(d.post).by[b] {
				if f := d.twin[g]; f != nil && slices.Contains(d.usesOf(d.pre).by[a], f) {
					d.refuse("removed-static", b, AllowStatic, "it was a variable of the file, and is one of "+display(g.Name)+" now: what the running program has in it would not count",
						"leave it where it was")
					break
				}
			}
		}
	}
}

// plainName gives the name that a variable has in the source.
func plainName(y *objfile.Symbol) string {
	name := baseName(y.Name)
	if strings.HasPrefix(name, "_Z") {
		name = display(name)
		return name[strings.LastIndex(name, ":")+1:]
	}
	return name[strings.LastIndex(name, ".")+1:] // clang has the function in front
}

// onlyLike gives the one of list that looks like y: same size, sort of section
// and content.
func onlyLike(y *objfile.Symbol, list []*objfile.Symbol) *objfile.Symbol {
	var found *objfile.Symbol
	for _, z := range list {
		if y.Size != z.Size || y.Type != z.Type || sectionClass(y.Section.Name) != sectionClass(z.Section.Name) {
			continue
		}
		if y.Section.Data != nil && z.Section.Data != nil &&
			string(y.Section.Data[y.Value:y.Value+y.Size]) != string(z.Section.Data[z.Value:z.Value+z.Size]) {
			continue
		}
		if found != nil {
			return nil
		}
		found = z
	}
	return found
}

// sameShape reports whether two functions have the same instructions, whatever
// they refer to.
func (d *differ) sameShape(f, g *objfile.Symbol) bool {
	if f.Size != g.Size || f.Section.Data == nil || g.Section.Data == nil {
		return false
	}
	pr, qr := f.Section.Within(f.Value, f.Value+f.Size), g.Section.Within(g.Value, g.Value+g.Size)
	if len(pr) != len(qr) {
		return false
	}
	x, y := slices.Clone(f.Section.Data[f.Value:f.Value+f.Size]), slices.Clone(g.Section.Data[g.Value:g.Value+g.Size])
	for i := range pr {
		off, n := pr[i].Off-f.Value, uint64(pr[i].Width())
		if off != qr[i].Off-g.Value || pr[i].Type != qr[i].Type || off+n > f.Size {
			return false
		}
		clear(x[off : off+n])
		clear(y[off : off+n])
	}
	return slices.Equal(x, y)
}

// sameOwners reports whether some function with a twin reaches both variables,
// directly or through functions that have none.
func (d *differ) sameOwners(a, b *objfile.Symbol) bool {
	before := d.owners(d.usesOf(d.pre), a, d.rev)
	after := d.owners(d.usesOf(d.post), b, d.twin)
	for f := range before {
		if after[d.rev[f]] {
			return true
		}
	}
	return false
}

func (d *differ) owners(u *uses, y *objfile.Symbol, twins map[*objfile.Symbol]*objfile.Symbol) map[*objfile.Symbol]bool {
	found, seen := make(map[*objfile.Symbol]bool), make(map[*objfile.Symbol]bool)
	todo := slices.Clone(u.by[y])
	for len(todo) > 0 {
		f := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[f] {
			continue
		}
		seen[f] = true
		if twins[f] != nil {
			found[f] = true
		} else {
			todo = append(todo, u.by[f]...)
		}
	}
	return found
}
