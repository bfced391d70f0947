package objdiff

import (
	"debug/dwarf"
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"github.com/ianlancetaylor/demangle"

	"hotpatch/internal/lazy"
	"hotpatch/internal/objfile"
	"hotpatch/trampoline"
)

// Some types have no name that tells them from others: lambdas, types without a name, and
// classes of one name in one function. Compilers number them: lambdas among those of the same
// parameters in a function (Itanium C++ ABI 5.1.8), or, where no other file can see them, all
// of a file together (clang's $_0, gcc's ._anon_0). So one that is added or taken away
// renames others, and functions and variables whose names contain its number, down to
// instances of templates of the library, are then not those that had the names before. A
// program may have kept a lambda, in a std::function for one, and would come to call
// another, or one that finds other things captured than it expects.
//
// Where such a type is, and what it holds, debugging information says. What is named by one
// that is not the same is cut loose from what has had its name: the program keeps that for
// what it has kept, and the patch has the new one.

// numbered is a symbol that is named by such types, with its namesake after the change.
type numbered struct {
	pre, post *objfile.Symbol // post is nil if it has none
	types     []string        // for people
}

// family gives what such symbols have in common that differ in the numbers of types only.
func (p *numbered) family() string { return numberless(strings.Join(p.types, ", ")) }

// numberedTypes cuts loose what is named by a type that is not the one of before.
func (d *differ) numberedTypes() {
	var pairs, differ []*numbered
	changed := make(map[string][]string) // families to the types of which some code differs
	for _, b := range d.post.Symbols {
		a := d.twin[b]
		if a == nil || !a.Defined() || !b.Defined() {
			continue
		}
		types := numberedIn(b.Name)
		if len(types) == 0 {
			continue
		}
		p := &numbered{a, b, types}
		pairs = append(pairs, p)
		if a.IsFunc() && b.IsFunc() && d.compareCode(a, b) != nil { // others of its type tell else
			differ = append(differ, p)
			if t := strings.Join(types, ", "); !slices.Contains(changed[p.family()], t) {
				changed[p.family()] = append(changed[p.family()], t)
			}
		}
	}
	severed := make(map[*numbered]bool)
	other := make(map[string]bool) // types that are not those of before
	for _, p := range differ {
		if !d.sameTypes(p, len(changed[p.family()]) == 1) {
			severed[p] = true
			if len(p.types) == 1 {
				other[p.types[0]] = true
			}
		}
	}
	for _, p := range pairs {
		if !severed[p] && !slices.ContainsFunc(p.types, func(s string) bool { return other[s] }) {
			continue
		}
		d.out.Severed[p.post] = true
		delete(d.twin, p.post)
		delete(d.rev, p.pre)
		clear(d.seen)
		if !p.pre.IsFunc() && !isReadOnly(p.pre.Section) && !isClassData(p.pre.Name) {
			d.refuseStatic(p.pre, p.types)
		}
	}
}

// renumberedStatic refuses a static variable in a numbered type that is there under another
// number, and reports whether it is so.
func (d *differ) renumberedStatic(a *objfile.Symbol) bool {
	types := numberedIn(a.Name)
	if len(types) == 0 {
		return false
	}
	for _, b := range d.post.Symbols {
		if b.Section != nil && !b.IsFunc() && d.twin[b] == nil && b.Type == a.Type && sameButForNumber(a, b) {
			d.refuseStatic(a, types)
			return true
		}
	}
	return false
}

func (d *differ) refuseStatic(a *objfile.Symbol, types []string) {
	d.refuse("ambiguous-static", a, AllowStatic, "it is a static variable in "+strings.Join(types, ", ")+", which has got another number, since a lambda or a type was added or removed in front of it; its state would be lost",
		"add lambdas and classes behind the others, or give them names")
}

// mayBeNumbered excludes most names quickly.
func mayBeNumbered(name string) bool {
	return strings.HasPrefix(name, "_Z") && (strings.Contains(name, "Ul") || strings.Contains(name, "Ut") || strings.Contains(name, "$_") ||
		strings.Contains(name, "._anon_") || strings.Contains(name[2:], "Z"))
}

// discriminator matches what tells local things of one name apart (Itanium C++ ABI 5.1.6).
var discriminator = lazy.Regexp(`E_(?:([0-9])|_([0-9]+)_)|[0-9]+[A-Za-z_][A-Za-z_0-9]*?_([0-9])$`)

// numberedIn gives the types without a name of their own that a mangled name contains, each
// with what it is in, and its number.
func numberedIn(name string) (list []string) {
	if !mayBeNumbered(name) {
		return nil
	}
	plain := name
	if i := strings.LastIndex(plain, "._anon_"); i < 0 {
		plain, _, _ = strings.Cut(plain, ".") // without what compilers append
	}
	ast, err := demangle.ToAST(plain)
	if err != nil {
		return nil
	}
	add := func(s string) {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	root := ast
	if s, ok := ast.(*demangle.Special); ok && !isClassData(name) {
		root = s.Val // a guard's variable
	}
	ast.Traverse(func(n demangle.AST) bool {
		switch x := n.(type) {
		case *demangle.Name:
			if strings.HasPrefix(x.Name, "._anon_") {
				add(x.Name)
			}
		case *demangle.Qualified:
			l, local := x.Name, x.LocalName
			if local {
				l = leftmost(l)
			}
			scope := demangle.ASTToString(x.Scope)
			switch y := l.(type) {
			case *demangle.Closure, *demangle.UnnamedType:
				add(scope + "::" + demangle.ASTToString(l))
			case *demangle.Name:
				switch {
				case strings.HasPrefix(y.Name, "$_"):
					add(scope + "::" + y.Name)
				case local && (l != x.Name || n != root): // and not a variable or function
					add(fmt.Sprintf("%s::%s#%s}", scope, y.Name, strings.Join(discriminator().FindStringSubmatch(plain), "")))
				}
			}
		}
		return true
	})
	return list
}

// leftmost gives what a name within a function begins with.
func leftmost(n demangle.AST) demangle.AST {
	for {
		switch x := n.(type) {
		case *demangle.Typed:
			n = x.Name
		case *demangle.MethodWithQualifiers:
			n = x.Method
		case *demangle.Template:
			n = x.Name
		case *demangle.Qualified:
			n = x.Scope
		default:
			return n
		}
	}
}

// number matches the numbers of types in demangled names.
var number = lazy.Regexp(`#[^#}]*\}|\$_[0-9]+|\._anon_[0-9]+`)

// numberless gives a name for people without the numbers of types.
func numberless(name string) string { return number().ReplaceAllString(name, "") }

// belongs notes types that a template is instantiated with, and types that are numbered.
func (i *debugInfo) belongs(n *entry) {
	const pack = dwarf.Tag(0x4107) // DW_TAG_GNU_template_parameter_pack
	switch n.tag {
	case dwarf.TagTemplateTypeParameter:
		of := n.parent
		for of.tag == pack && of.parent != nil {
			of = of.parent
		}
		of.params = append(of.params, n.typ)
	case dwarf.TagSubprogram:
		if n.name == "operator()" || strings.HasPrefix(n.name, "operator()<") {
			n.parent.callable = true
		}
	case dwarf.TagClassType, dwarf.TagStructType, dwarf.TagUnionType, dwarf.TagEnumerationType:
		if i.isNumbered(n) {
			i.numbered[i.place(n)] = append(i.numbered[i.place(n)], n)
		}
	}
}

// isNumbered reports whether a type is one of those that may have a number for a name.
func (i *debugInfo) isNumbered(n *entry) bool {
	switch n.tag {
	case dwarf.TagClassType, dwarf.TagStructType, dwarf.TagUnionType, dwarf.TagEnumerationType:
		return !n.declared && (n.name == "" || i.place(n) != nil && i.place(n).tag == dwarf.TagSubprogram)
	}
	return false
}

// place gives the function, class, namespace or file that a type is in.
func (i *debugInfo) place(n *entry) *entry {
	for p := n.parent; p != nil; p = p.parent {
		if p.tag != dwarf.TagLexDwarfBlock {
			return p
		}
	}
	return nil
}

// peers gives a type and those of its place that are numbered with it, in order.
func (i *debugInfo) peers(n *entry) (list []*entry) {
	for _, m := range i.numbered[i.place(n)] {
		if m.name == n.name && (n.name != "" || m.callable == n.callable) {
			list = append(list, m)
		}
	}
	return list
}

// reached gives the numbered types by which something is named: those that it is in, and
// those that templates are instantiated with.
func (i *debugInfo) reached(n *entry) (list []*entry) {
	seen := make(map[*entry]bool)
	var visit func(n *entry, depth int)
	visit = func(n *entry, depth int) {
		if n == nil || seen[n] || depth > maxTypeDepth {
			return
		}
		seen[n] = true
		if i.isNumbered(n) {
			list = append(list, n)
		}
		if n.origin != 0 {
			visit(i.entries[n.origin], depth+1)
		}
		for _, off := range n.params {
			visit(i.pointee(off), depth+1)
		}
		visit(n.parent, depth+1)
	}
	visit(n, 0)
	return list
}

// pointee gives the type that another one is a pointer, an array, or another name of.
func (i *debugInfo) pointee(off dwarf.Offset) *entry {
	t := i.entries[off]
	for range maxTypeDepth {
		if t == nil || t.typ == 0 {
			break
		}
		switch t.tag {
		case dwarf.TagConstType, dwarf.TagVolatileType, dwarf.TagPointerType, dwarf.TagReferenceType, dwarf.TagRvalueReferenceType, dwarf.TagTypedef, dwarf.TagArrayType:
			t = i.entries[t.typ]
			continue
		}
		break
	}
	return t
}

// sameTypes reports whether namesakes are named by the same types. alone says that no other
// type of the family has code that differs.
func (d *differ) sameTypes(p *numbered, alone bool) bool {
	pre, post := d.full(d.pre), d.full(d.post)
	var x, y []*entry
	if pre.err == nil && post.err == nil {
		x = pre.reached(pre.byPlace[codePlace{p.pre.Section, p.pre.Value}])
		y = post.reached(post.byPlace[codePlace{p.post.Section, p.post.Value}])
	}
	if len(x) == 0 && len(y) == 0 {
		// Debugging information does not tell: by number, if there are as many as before.
		return alone && d.countTypes(d.pre, p) == d.countTypes(d.post, p) && d.survivor(p) == nil && d.ancestor(p) == nil
	}
	if len(x) != len(y) {
		return false
	}
	certain := true
	for k := range x {
		same, sure := d.sameType(pre, x[k], post, y[k])
		if !same {
			return false
		}
		certain = certain && sure
	}
	return certain || alone && d.survivor(p) == nil && d.ancestor(p) == nil
}

// sameType compares two numbered types by what they hold and where they are. sure is false if
// that leaves open whether the second one is the first, edited.
func (d *differ) sameType(pre *debugInfo, p *entry, post *debugInfo, q *entry) (same, sure bool) {
	if p.name != q.name || p.tag != q.tag || compareLayout(pre, p, post, q) != "" {
		return false, true
	}
	x, y := pre.peers(p), post.peers(q)
	at := func(n *entry) func(*entry) bool {
		return func(m *entry) bool { return m.file == n.file && m.line == n.line && m.column == n.column }
	}
	inOrder := len(x) == len(y) && slices.Index(x, p) == slices.Index(y, q)
	switch {
	case p.name != "" && len(x) == 1 && len(y) == 1:
		return true, true // it is told by its name
	case d.sameLine == nil:
		return inOrder, !inOrder
	case d.sameLine(p.file, p.line):
		// The line is there after the change. A new one may have the same number.
		return at(p)(q) && count(x, at(p)) == 1 && count(y, at(p)) == 1, true
	case !inOrder || p.file != q.file:
		return false, true
	}
	// Both must be in the same changed lines.
	for line := min(p.line, q.line) + 1; line <= max(p.line, q.line); line++ {
		if d.sameLine(p.file, line) {
			return false, true
		}
	}
	return true, false
}

func count(list []*entry, f func(*entry) bool) (n int) {
	for _, x := range list {
		if f(x) {
			n++
		}
	}
	return n
}

// countTypes counts the types by which symbols are named and that differ from those of a name
// in their numbers only.
func (d *differ) countTypes(o *objfile.Object, p *numbered) int {
	mine := make(map[string]bool)
	for _, s := range p.types {
		mine[numberless(s)] = true
	}
	found := make(map[string]bool)
	for _, y := range o.Symbols {
		if y.Defined() {
			for _, s := range numberedIn(y.Name) {
				if mine[numberless(s)] {
					found[s] = true
				}
			}
		}
	}
	return len(found)
}

// survivor gives a function that after the change has, under another number, the code of one
// before, and ancestor one that has had, before, the code that one has after it.
func (d *differ) survivor(p *numbered) *objfile.Symbol {
	return d.elsewhere(d.post, p.pre, p.post, func(y *objfile.Symbol) bool { return d.compareCode(p.pre, y) == nil })
}

func (d *differ) ancestor(p *numbered) *objfile.Symbol {
	return d.elsewhere(d.pre, p.post, p.pre, func(y *objfile.Symbol) bool { return d.compareCode(y, p.post) == nil })
}

// elsewhere looks in an object for a function whose name differs from one in numbers only. What
// is named by numbered types counts as the same there if it differs in the numbers only.
func (d *differ) elsewhere(o *objfile.Object, f, not *objfile.Symbol, is func(*objfile.Symbol) bool) *objfile.Symbol {
	d.anyNumber = true
	clear(d.seen)
	defer func() {
		d.anyNumber = false
		clear(d.seen)
	}()
	name := numberless(display(f.Name))
	for _, y := range o.Symbols {
		if y != not && y.IsFunc() && isCode(y.Section) && mayBeNumbered(y.Name) && numberless(display(y.Name)) == name && is(y) {
			return y
		}
	}
	return nil
}

// sameButForNumber reports whether names differ in nothing but the numbers of types.
func sameButForNumber(a, b *objfile.Symbol) bool {
	return mayBeNumbered(a.Name) && mayBeNumbered(b.Name) && numberless(display(a.Name)) == numberless(display(b.Name))
}

// keptTypes warns of functions of numbered types that the program may have kept the address
// of, that are not replaced, and that have no equal in the new code.
func (d *differ) keptTypes() {
	var left []*numbered
	for _, a := range d.pre.Symbols {
		if a.IsFunc() && isCode(a.Section) && d.rev[a] == nil {
			if types := numberedIn(a.Name); len(types) > 0 {
				left = append(left, &numbered{a, nil, types})
			}
		}
	}
	if len(left) == 0 {
		return
	}
	kept := d.addressed()
	body := make(map[string]*numbered) // the code of a lambda itself, where it is a function, decides
	for _, p := range left {
		if t := strings.Join(p.types, ", "); strings.HasPrefix(display(p.pre.Name), t+"::operator()") {
			body[t] = p
		}
	}
	said := make(map[string]bool)
	for _, p := range left {
		t := strings.Join(p.types, ", ")
		decides := p
		if body[t] != nil {
			decides = body[t]
		}
		if kept[p.pre] && !said[t] && d.survivor(decides) == nil {
			said[t] = true
			d.warn("kept-type", p.pre, strings.ReplaceAll(t, "#}", "")+" is another type than before, or gone, or holds other things: lambdas, and types without a name, are known by their number; what the program has kept of it (in a std::function, say) goes on with the old code",
				"let the program register it again")
		}
	}
}

// addressed gives what has its address taken in Pre: in code, by anything but a branch.
func (d *differ) addressed() map[*objfile.Symbol]bool {
	if d.taken != nil {
		return d.taken
	}
	list := make(map[*objfile.Symbol]bool)
	d.taken = list
	for _, s := range d.pre.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 || isFrameData(s) {
			continue
		}
		if !isCode(s) || s.Data == nil {
			for _, r := range Refs(s) {
				list[r.Sym] = true
			}
			continue
		}
		insts, err := s.Decode(0, s.Size)
		if err != nil {
			continue
		}
		for _, in := range insts {
			switch in.Flow {
			case trampoline.Call, trampoline.Jump, trampoline.CondJump:
			default:
				for _, r := range in.Refs {
					list[r.Sym] = true
				}
			}
		}
	}
	return list
}

// layoutsByNumber compares types whose names contain numbered ones, and may be those of
// others: those that are named by the same ones.
func (d *differ) layoutsByNumber(pre *debugInfo, p []*entry, post *debugInfo, q []*entry) string {
	for _, m := range p {
		x := pre.reached(m)
		for _, n := range q {
			y := post.reached(n)
			same := len(x) == len(y)
			for k := range min(len(x), len(y)) {
				if same {
					same, _ = d.sameType(pre, x[k], post, y[k])
				}
			}
			if same && (len(x) > 0 || len(p) == 1 && len(q) == 1) {
				if why := compareLayout(pre, m, post, n); why != "" {
					return why
				}
			}
		}
	}
	return ""
}
