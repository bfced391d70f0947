package objdiff

import (
	"debug/dwarf"
	"debug/elf"
	"slices"
	"strings"

	"github.com/ianlancetaylor/demangle"

	"hotpatch/internal/lazy"
	"hotpatch/internal/objfile"
	"hotpatch/trampoline"
)

// Lambdas have no names. Compilers number them: among those of the same parameters in a
// function (Itanium C++ ABI 5.1.8), or among all of a file (clang, where no other file can
// see them). So one that is added or taken away renames others, and functions and variables
// whose names contain its number, down to instances of templates of the library, are then
// not those that had the names before. A program may have kept such a lambda, in a
// std::function for one, and would come to call another, or one that finds other things
// captured than it expects.
//
// Where a lambda is, and what it captures, debugging information says. What is called by a
// lambda that is not the same is cut loose from what has had its name: the program keeps
// that for what it has kept, and the patch has the new one.

// lambdas cuts loose what is named by a lambda that is not the one of before.
func (d *differ) lambdas() {
	var pairs []*named
	for _, b := range d.post.Symbols {
		if a := d.twin[b]; a != nil && a.Defined() && b.Defined() && mayNameLambda(b.Name) {
			if texts := lambdasIn(b.Name); len(texts) > 0 {
				pairs = append(pairs, &named{a, b, texts})
			}
		}
	}
	severed := make(map[*named]bool)
	other := make(map[string]bool) // lambdas that are not those of before
	for _, p := range pairs {
		if !p.pre.IsFunc() || !p.post.IsFunc() || d.compareCode(p.pre, p.post) == nil {
			continue // others of its lambda tell
		}
		if !d.sameLambdas(p) {
			severed[p] = true
			if len(p.texts) == 1 {
				other[p.texts[0]] = true
			}
		}
	}
	for _, p := range pairs {
		if !severed[p] && !slices.ContainsFunc(p.texts, func(s string) bool { return other[s] }) {
			continue
		}
		d.out.Severed[p.post] = true
		delete(d.twin, p.post)
		delete(d.rev, p.pre)
		clear(d.seen)
		if !p.pre.IsFunc() && !isReadOnly(p.pre.Section) && !isClassData(p.pre.Name) {
			d.refuse("ambiguous-static", p.pre, AllowStatic, "it is a static variable of a lambda that has got another number, since lambdas were added or removed in front of it; its state would be lost",
				"add lambdas behind the others of the function, or make functions of them")
		}
	}
}

// named is a symbol that is named by lambdas, with its namesake.
type named struct {
	pre, post *objfile.Symbol // post is nil if it has none
	texts     []string        // the lambdas, for people
}

// mayNameLambda excludes most names quickly.
func mayNameLambda(name string) bool {
	return strings.HasPrefix(name, "_Z") && (strings.Contains(name, "Ul") || strings.Contains(name, "$_"))
}

// lambdasIn gives the lambdas that a mangled name contains, each with what it is in.
func lambdasIn(name string) (list []string) {
	if i := strings.IndexByte(name, '.'); i > 0 {
		name = name[:i] // what compilers append
	}
	ast, err := demangle.ToAST(name)
	if err != nil {
		return nil
	}
	ast.Traverse(func(n demangle.AST) bool {
		q, ok := n.(*demangle.Qualified)
		if !ok {
			return true
		}
		l := q.Name
		if q.LocalName {
			l = leftmost(l)
		}
		if isLambda(l) {
			s := demangle.ASTToString(q.Scope) + "::" + demangle.ASTToString(l)
			if !slices.Contains(list, s) {
				list = append(list, s)
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

func isLambda(n demangle.AST) bool {
	switch x := n.(type) {
	case *demangle.Closure:
		return true
	case *demangle.Name:
		return strings.HasPrefix(x.Name, "$_")
	}
	return false
}

// belongs notes types that a template is instantiated with, and types of lambdas.
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
		t := n.parent
		isType := t.tag == dwarf.TagClassType || t.tag == dwarf.TagStructType
		if !isType || t.name != "" || t.lambda || n.name != "operator()" && !strings.HasPrefix(n.name, "operator()<") {
			return
		}
		t.lambda = true
		of := i.place(t)
		i.lambdas[of] = append(i.lambdas[of], t)
	}
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

// reached gives the types of lambdas by which something is named: those that it is in, and
// those that templates are instantiated with.
func (i *debugInfo) reached(n *entry) (list []*entry) {
	seen := make(map[*entry]bool)
	var visit func(n *entry, depth int)
	visit = func(n *entry, depth int) {
		if n == nil || seen[n] || depth > maxTypeDepth {
			return
		}
		seen[n] = true
		if n.lambda {
			list = append(list, n)
		}
		if n.origin != 0 {
			visit(i.entries[n.origin], depth+1)
		}
		for _, off := range n.params {
			t := i.entries[off]
			for range maxTypeDepth {
				if t == nil || t.typ == 0 || t.lambda {
					break
				}
				switch t.tag {
				case dwarf.TagConstType, dwarf.TagVolatileType, dwarf.TagPointerType, dwarf.TagReferenceType, dwarf.TagRvalueReferenceType, dwarf.TagTypedef, dwarf.TagArrayType:
					t = i.entries[t.typ]
					continue
				}
				break
			}
			visit(t, depth+1)
		}
		visit(n.parent, depth+1)
	}
	visit(n, 0)
	return list
}

// sameLambdas reports whether namesakes are named by the same lambdas.
func (d *differ) sameLambdas(p *named) bool {
	pre, post := d.full(d.pre), d.full(d.post)
	var x, y []*entry
	if pre.err == nil && post.err == nil {
		x = pre.reached(pre.byPlace[codePlace{p.pre.Section, p.pre.Value}])
		y = post.reached(post.byPlace[codePlace{p.post.Section, p.post.Value}])
	}
	if len(x) == 0 && len(y) == 0 {
		// Debugging information does not tell: by number, if there are as many as before.
		return d.countLambdas(d.pre, p) == d.countLambdas(d.post, p) && d.survivor(p) == nil
	}
	if len(x) != len(y) {
		return false
	}
	certain := true
	for k := range x {
		same, sure := d.sameLambda(pre, x[k], post, y[k])
		if !same {
			return false
		}
		certain = certain && sure
	}
	return certain || d.survivor(p) == nil
}

// sameLambda compares two lambdas by what they capture and where they are. sure is false if
// that leaves open whether the second one is the first, edited.
func (d *differ) sameLambda(pre *debugInfo, p *entry, post *debugInfo, q *entry) (same, sure bool) {
	if compareLayout(pre, p, post, q) != "" {
		return false, true
	}
	x, y := pre.lambdas[pre.place(p)], post.lambdas[post.place(q)]
	at := func(n *entry) func(*entry) bool {
		return func(m *entry) bool { return m.file == n.file && m.line == n.line && m.column == n.column }
	}
	alone := count(x, at(p)) == 1 && count(y, at(q)) == 1 && count(x, at(q)) <= 1 && count(y, at(p)) <= 1
	switch {
	case d.sameLine != nil && alone && at(p)(q):
		return true, true
	case len(x) != len(y) || slices.Index(x, p) != slices.Index(y, q):
		return false, true
	case d.sameLine == nil:
		return true, false
	}
	// Both must be in the same changed lines.
	for line := min(p.line, q.line); line <= max(p.line, q.line); line++ {
		if p.file != q.file || p.line != q.line && d.sameLine(p.file, line) {
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

// lambdaNumber matches the numbers of lambdas in demangled names.
var lambdaNumber = lazy.Regexp(`#[0-9]+\}|\$_[0-9]+`)

// numberless gives a name for people without the numbers of lambdas.
func numberless(name string) string { return lambdaNumber().ReplaceAllString(name, "") }

// countLambdas counts the lambdas by which symbols are named and that differ from those of
// a name in their numbers only.
func (d *differ) countLambdas(o *objfile.Object, p *named) int {
	mine := make(map[string]bool)
	for _, s := range p.texts {
		mine[numberless(s)] = true
	}
	found := make(map[string]bool)
	for _, y := range o.Symbols {
		if y.Defined() && mayNameLambda(y.Name) {
			for _, s := range lambdasIn(y.Name) {
				if mine[numberless(s)] {
					found[s] = true
				}
			}
		}
	}
	return len(found)
}

// survivor gives a function that has a name's code of before under another number.
func (d *differ) survivor(p *named) *objfile.Symbol {
	if p.post != nil && d.compareCode(p.pre, p.post) == nil {
		return nil
	}
	name := numberless(display(p.pre.Name))
	d.anyNumber = true
	defer func() { d.anyNumber = false }()
	for _, y := range d.post.Symbols {
		if y != p.post && y.IsFunc() && isCode(y.Section) && mayNameLambda(y.Name) && numberless(display(y.Name)) == name && d.compareCode(p.pre, y) == nil {
			return y
		}
	}
	return nil
}

// sameButForNumber reports whether type information is the same but for the numbers of lambdas.
func sameButForNumber(a, b *objfile.Symbol) bool {
	return isClassData(a.Name) && isClassData(b.Name) && mayNameLambda(a.Name) && mayNameLambda(b.Name) && numberless(display(a.Name)) == numberless(display(b.Name))
}

// keptLambdas warns of functions of lambdas that the program may have kept the address of,
// that are not replaced, and that have no equal in the new code.
func (d *differ) keptLambdas() {
	var left []*named
	for _, a := range d.pre.Symbols {
		if a.IsFunc() && isCode(a.Section) && d.rev[a] == nil && mayNameLambda(a.Name) {
			if texts := lambdasIn(a.Name); len(texts) > 0 {
				left = append(left, &named{a, nil, texts})
			}
		}
	}
	if len(left) == 0 {
		return
	}
	kept := addressed(d.pre)
	// The code of a lambda itself decides, where it is a function.
	said := make(map[string]bool)
	for _, p := range left {
		if text := strings.Join(p.texts, ", "); strings.HasPrefix(display(p.pre.Name), text+"::operator()") && d.survivor(p) != nil {
			said[text] = true
		}
	}
	for _, p := range left {
		text := strings.Join(p.texts, ", ")
		if kept[p.pre] && !said[text] && d.survivor(p) == nil {
			said[text] = true
			d.warn("kept-lambda", p.pre, "lambdas were added or removed, or capture other things than before: if the program has kept this one (in a std::function, say), it goes on with the old code", "let the program register it again")
		}
	}
}

// addressed gives what has its address taken: in code, by anything but a branch.
func addressed(o *objfile.Object) map[*objfile.Symbol]bool {
	list := make(map[*objfile.Symbol]bool)
	for _, s := range o.Sections {
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

// layoutsByLambda compares types that are named by lambdas, and may have the name of others: those
// that are named by the same ones.
func (d *differ) layoutsByLambda(pre *debugInfo, p []*entry, post *debugInfo, q []*entry) string {
	for _, m := range p {
		x := pre.reached(m)
		for _, n := range q {
			y := post.reached(n)
			same := len(x) == len(y)
			for k := range min(len(x), len(y)) {
				if same {
					same, _ = d.sameLambda(pre, x[k], post, y[k])
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
