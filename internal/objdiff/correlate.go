package objdiff

import (
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
)

// differ is one comparison.
type differ struct {
	pre, post *objfile.Object
	allow     map[string]bool
	out       *Diff
	sameLine  func(file string, line int) bool
	only      map[*objfile.Symbol]bool

	twin       map[*objfile.Symbol]*objfile.Symbol // post to pre
	rev        map[*objfile.Symbol]*objfile.Symbol // pre to post
	refused    fault.List
	lost       []*objfile.Symbol        // static variables of functions that seem to be gone
	notShipped map[*objfile.Symbol]bool // constructors and resolvers
	alike      map[*objfile.Symbol]bool // constants that linkers merge, and both builds have

	// Caches and working state of comparisons.
	seen      map[pair]bool
	depth     int
	anyNumber bool // names that differ in the numbers of types only mean the same: see elsewhere
	bounds    map[*objfile.Section][]uint64
	frames    map[*objfile.Object]map[codePlace]*objfile.Frame
	tables    map[*objfile.Section][]uint64 // where the exception tables of a section begin
	uses      map[*objfile.Object]*uses
	byName    map[*objfile.Object]map[string][]*objfile.Symbol
	taken     map[*objfile.Symbol]bool // see addressed
	children  map[*objfile.Object]map[codePlace][]*objfile.Symbol
	debug     map[*objfile.Object]*debugInfo
}

// pairUp makes b the twin of a, if both are still without one.
func (d *differ) pairUp(a, b *objfile.Symbol) bool {
	if d.rev[a] != nil || d.twin[b] != nil {
		return false
	}
	d.twin[b], d.rev[a] = a, b
	return true
}

// relevant reports whether a symbol takes part in pairing by name: not section
// and file symbols, labels, and constants that are compared by content.
func relevant(y *objfile.Symbol) bool {
	switch {
	case y.Index == 0 || y.Name == "" || y.Type == elf.STT_SECTION || y.Type == elf.STT_FILE:
		return false
	case y.Bind == elf.STB_LOCAL && strings.HasPrefix(y.Name, ".L"):
		return false
	case y.Section != nil && y.Section.Flags&elf.SHF_ALLOC == 0:
		return false
	}
	return !byContent(y)
}

// correlate finds the twins of all symbols but the static variables of functions.
func (d *differ) correlate() {
	d.globals()
	// Local symbols: by name within their file, then without what compilers
	// append. Names that are there more than once on a side say nothing.
	oneFile := files(d.pre) <= 1 && files(d.post) <= 1
	name := func(y *objfile.Symbol) string { return y.Name }
	base := func(y *objfile.Symbol) string { return baseName(y.Name) }
	for _, norm := range []func(*objfile.Symbol) string{initialises, name, base} {
		key := func(y *objfile.Symbol) string {
			k := norm(y)
			if !oneFile {
				k = y.File + "\x00" + k
			}
			return fmt.Sprintf("%t\x00%s", y.IsFunc(), k)
		}
		pre, post := d.locals(d.pre, key), d.locals(d.post, key)
		for k, list := range post {
			if other := pre[k]; len(list) == 1 && len(other) == 1 {
				d.pairUp(other[0], list[0])
			}
		}
	}
}

// initialises gives a name to a function that initialises variables of the file, by those:
// its number depends on what else is in the file, and it must be known for the same.
func initialises(y *objfile.Symbol) string {
	if !isConstructorName(y.Name) || y.Section == nil || y.Section.Data == nil {
		return y.Name
	}
	names := []string{baseName(y.Name)}
	for _, r := range Refs(y.Section) {
		if in := r.Reloc.Off - y.Value; in < y.Size && !r.Sym.IsFunc() && r.Sym.Name != "" && !byContent(r.Sym) && !slices.Contains(names, baseName(r.Sym.Name)) {
			names = append(names, baseName(r.Sym.Name))
		}
	}
	return strings.Join(names, "\x00")
}

// files counts the source files of an object; more than one were combined by
// ld -r.
func files(o *objfile.Object) (n int) {
	for _, y := range o.Symbols {
		if y.Type == elf.STT_FILE && y.Name != "" {
			n++
		}
	}
	return n
}

// locals groups the local symbols that have no twin yet, but for the static
// variables of functions.
func (d *differ) locals(o *objfile.Object, key func(*objfile.Symbol) string) map[string][]*objfile.Symbol {
	groups := make(map[string][]*objfile.Symbol)
	for _, y := range o.Symbols {
		if y.Bind != elf.STB_LOCAL || !relevant(y) || d.twin[y] != nil || d.rev[y] != nil {
			continue
		}
		if y.IsFunc() || y.Type == elf.STT_NOTYPE || !isStaticLocal(y) {
			groups[key(y)] = append(groups[key(y)], y)
		}
	}
	return groups
}

// globals pairs the symbols that other files can see, and those whose scope has
// changed.
func (d *differ) globals() {
	d.inlineStatics()
	pre := make(map[string]*objfile.Symbol)
	preLocal := make(map[string]*objfile.Symbol)
	for _, y := range d.pre.Symbols {
		switch {
		case !relevant(y):
		case y.Bind != elf.STB_LOCAL:
			pre[y.Name] = y
		case preLocal[y.Name] == nil:
			preLocal[y.Name] = y
		default:
			preLocal[y.Name] = ambiguous
		}
	}
	for _, b := range d.post.Symbols {
		if !relevant(b) {
			continue
		}
		if b.Bind == elf.STB_LOCAL {
			if a := pre[b.Name]; a != nil && a.Defined() && !isStaticLocal(b) {
				d.rescoped(a, b, "global", "static")
			}
			continue
		}
		a := pre[b.Name]
		if a == nil {
			if a = preLocal[b.Name]; a != nil && a != ambiguous && b.Defined() {
				d.rescoped(a, b, "static", "global")
			}
			continue
		}
		switch {
		case !sameSort(a, b):
			d.refuse("changed-scope", b, AllowScope, fmt.Sprintf("it was %s, and is %s", sort(a), sort(b)), "give the new one another name")
			continue // neither can stand for the other
		case !a.Defined() && b.Defined() && b.Bind != elf.STB_WEAK:
			d.refuse("changed-scope", b, AllowScope, "it is defined in this file now, and was elsewhere: code that is not patched goes on with that one",
				"leave it where it was")
		case a.Defined() && !b.Defined():
			d.refuse("changed-scope", a, AllowScope, "it is no longer defined in this file, but still used: code that is not patched goes on with the old one",
				"leave it where it was")
		}
		d.pairUp(a, b)
	}
}

// inlineStatics refuses static variables of inline functions, which other files
// share by name, if their number differs: then the compiler may have numbered
// them anew, and one would get the state of another.
func (d *differ) inlineStatics() {
	count := func(o *objfile.Object) map[string][]*objfile.Symbol {
		groups := make(map[string][]*objfile.Symbol)
		for _, y := range o.Symbols {
			if y.Bind != elf.STB_LOCAL && y.Section != nil && isStaticLocal(y) && relevant(y) {
				groups[baseName(y.Name)] = append(groups[baseName(y.Name)], y)
			}
		}
		return groups
	}
	pre, post := count(d.pre), count(d.post)
	for _, name := range sortedKeys(pre) {
		if p, q := pre[name], post[name]; len(q) > 0 && len(p) != len(q) && (len(p) > 1 || len(q) > 1) {
			d.refuse("ambiguous-static", p[0], AllowStatic,
				fmt.Sprintf("static variables named %s: %d before, %d after, and which is which is not to be seen", display(name), len(p), len(q)),
				"give a new static variable a name that the function does not have yet")
		}
	}
}

// ambiguous stands for several symbols of a name.
var ambiguous = new(objfile.Symbol)

// rescoped pairs symbols of which one is local and one global. For functions that
// is all: code that is the same calls the same. But a variable would have to be
// found by other files, in which it was not visible.
func (d *differ) rescoped(a, b *objfile.Symbol, was, is string) {
	if !sameSort(a, b) {
		return
	}
	if !a.IsFunc() {
		d.refuse("changed-scope", b, AllowScope, fmt.Sprintf("the variable was %s, and is %s", was, is),
			"keep its scope; pass its address through a function")
	}
	d.pairUp(a, b)
}

// sameSort reports whether both are functions, both variables, or one of them
// is undefined and does not tell.
func sameSort(a, b *objfile.Symbol) bool {
	if a.Type == elf.STT_NOTYPE || b.Type == elf.STT_NOTYPE {
		return true
	}
	return sort(a) == sort(b)
}

func sort(y *objfile.Symbol) string {
	switch y.Type {
	case elf.STT_FUNC:
		return "a function"
	case elf.STT_GNU_IFUNC:
		return "an indirect function"
	case elf.STT_TLS:
		return "a thread-local variable"
	case elf.STT_NOTYPE:
		return "of no type"
	}
	return "a variable"
}
