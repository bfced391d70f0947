package objdiff

import (
	"bytes"
	"cmp"
	"debug/elf"
	"maps"
	"slices"
	"strings"

	"github.com/ianlancetaylor/demangle"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
)

// Compare compares two builds of one object file. What it returns refers to
// parts of both. Two files that are equal give an empty Diff, whatever they are.
//
// The fault is one refusal, or a fault.List of all that were found; the Details
// of each is its Finding. Refusals of either object as a whole are
// "lto-object", "assembler-object", "no-function-sections",
// "different-compiler" and "unknown-relocation". Refusals of the change are
// "changed-data", "changed-scope", "changed-vtable", "changed-ifunc",
// "changed-constructor", "changed-type", "changed-prototype", "kept-constant", "removed-static", "folded-static", "ambiguous-static",
// "split-alias", "unnamed-code", "unnamed-data", "struct-layout" and "new-tls"; of these some have an override.
func Compare(pre, post *objfile.Object, o Options) (*Diff, error) {
	d := &differ{
		pre: pre, post: post, allow: make(map[string]bool),
		out:        &Diff{Pre: pre, Post: post, Severed: make(map[*objfile.Symbol]bool)},
		twin:       make(map[*objfile.Symbol]*objfile.Symbol),
		rev:        make(map[*objfile.Symbol]*objfile.Symbol),
		seen:       make(map[pair]bool),
		notShipped: make(map[*objfile.Symbol]bool),
		alike:      make(map[*objfile.Symbol]bool),
		bounds:     make(map[*objfile.Section][]uint64),
		frames:     make(map[*objfile.Object]map[codePlace]*objfile.Frame),
		tables:     make(map[*objfile.Section][]uint64),
		uses:       make(map[*objfile.Object]*uses),
		byName:     make(map[*objfile.Object]map[string][]*objfile.Symbol),
		children:   make(map[*objfile.Object]map[codePlace][]*objfile.Symbol),
		debug:      make(map[*objfile.Object]*debugInfo),
	}
	d.sameLine, d.only = o.SameLine, o.Only
	for _, name := range o.Allow {
		d.allow[name] = true
	}
	d.out.Twin = d.twin
	if bytes.Equal(pre.Data, post.Data) {
		for i, y := range post.Symbols {
			d.twin[y] = pre.Symbols[i]
		}
		return d.out, nil
	}
	if err := d.acceptable(); err != nil {
		return nil, err
	}
	d.correlate()
	d.statics()
	d.numberedTypes()
	d.renamedOwners()
	d.compareFunctions()
	d.inlinedChanges()
	d.unnamedCode()
	d.sets()
	d.compareData()
	d.firstUses()
	d.constants()
	d.constructors()
	d.list()
	d.folded()
	d.movedInside()
	d.ship()
	d.threadLocals()
	if !d.out.Empty() {
		d.layouts()
		d.namelessEnums()
		d.variableTypes()
		d.prototypes()
		d.keptConstants()
		d.warnings()
	}
	if err := d.refused.ErrOrNil(); err != nil {
		return nil, err
	}
	return d.out, nil
}

// compareFunctions finds the functions that differ: one for each place in Pre.
func (d *differ) compareFunctions() {
	done := make(map[codePlace]int) // place in Pre to index in Changed, or -1
	shared := make(map[codePlace]*objfile.Symbol)
	for _, b := range d.post.Symbols {
		a := d.twin[b]
		if a == nil || !b.IsFunc() || !a.IsFunc() || !isCode(a.Section) || !isCode(b.Section) || d.parent(d.post, b) != nil {
			continue
		}
		at := codePlace{a.Section, a.Value}
		if other := shared[at]; other != nil && (other.Section != b.Section || other.Value != b.Value) {
			// One piece of code became two. That does no harm if both still do
			// what the one did.
			if i := done[at]; i >= 0 || d.changed(a, b) != nil {
				d.refuse("split-alias", b, "", "before, "+display(d.twin[other].Name)+" and "+display(a.Name)+" were the same code, and now one of them is different",
					"change both of them")
			}
			continue
		}
		if i, ok := done[at]; ok {
			if i >= 0 {
				d.out.Changed[i].Aliases = append(d.out.Changed[i].Aliases, a)
			}
			continue
		}
		shared[at], done[at] = b, -1
		if f := d.changed(a, b); f != nil && (d.only == nil || d.only[a]) {
			done[at] = len(d.out.Changed)
			d.out.Changed = append(d.out.Changed, *f)
		}
	}
}

// changed compares one function with its parts; nil means the same.
func (d *differ) changed(a, b *objfile.Symbol) *Function {
	f := &Function{Pre: a, Post: b, Parts: d.partsOf(a, b)}
	diff := d.compareCode(a, b)
	for _, p := range f.Parts {
		if diff != nil {
			break
		}
		if p.Pre == nil || p.Post == nil {
			diff = &difference{why: "its part " + p.Name + " is there in one build only", pre: a.Value, preIn: a.Section, post: b.Value, postIn: b.Section}
		} else if diff = d.compareCode(p.Pre, p.Post); diff != nil {
			diff.why = p.Name + ", " + diff.why
		}
	}
	if diff == nil && a.Bind == elf.STB_LOCAL && b.Bind != elf.STB_LOCAL {
		// Other files call it now, and will find it only in the patch.
		diff = &difference{why: "it was static, and is global", pre: a.Value, preIn: a.Section, post: b.Value, postIn: b.Section}
	}
	if diff == nil {
		return nil
	}
	f.Why = diff.why
	f.File, f.Line = d.declared(b)
	f.Inlined = d.inlinedAt(diff)
	return f
}

// partsOf gives the parts of a function on both sides, by name.
func (d *differ) partsOf(a, b *objfile.Symbol) []Part {
	byName := make(map[string]*Part)
	get := func(y *objfile.Symbol) *Part {
		k := baseName(y.Name)
		if byName[k] == nil {
			byName[k] = &Part{Name: k}
		}
		return byName[k]
	}
	for _, y := range d.parts(d.pre, a) {
		get(y).Pre = y
	}
	for _, y := range d.parts(d.post, b) {
		get(y).Post = y
	}
	var list []Part
	for _, k := range sortedKeys(byName) {
		p := byName[k]
		if p.Pre != nil && p.Post != nil {
			d.pairUp(p.Pre, p.Post)
		}
		list = append(list, *p)
	}
	return list
}

// parts gives the symbols of a function's parts.
func (d *differ) parts(o *objfile.Object, f *objfile.Symbol) (list []*objfile.Symbol) {
	index := d.children[o]
	if index == nil {
		index = make(map[codePlace][]*objfile.Symbol)
		for _, y := range o.Symbols {
			if y.IsFunc() && isCode(y.Section) {
				if p := d.parent(o, y); p != nil {
					at := codePlace{p.Section, p.Value}
					index[at] = append(index[at], y)
				}
			}
		}
		d.children[o] = index
	}
	return index[codePlace{f.Section, f.Value}]
}

// list fills in what is new and what is gone.
func (d *differ) list() {
	for _, y := range d.post.Symbols {
		if listed(y) && d.twin[y] == nil && !d.alike[y] {
			d.out.New = append(d.out.New, y)
		}
	}
	for _, y := range d.pre.Symbols {
		// A global one whose twin is undefined was removed as well.
		if b := d.rev[y]; listed(y) && (b == nil || !b.Defined()) && !d.alike[y] {
			d.out.Removed = append(d.out.Removed, y)
		}
	}
}

// listed reports whether a symbol is a function or variable of its own that is
// defined in the object.
func listed(y *objfile.Symbol) bool {
	if y.Index == 0 || y.Name == "" || !y.Defined() || y.Type == elf.STT_SECTION || y.Type == elf.STT_FILE || y.Type == elf.STT_NOTYPE {
		return false
	}
	if y.Section != nil && y.Section.Flags&elf.SHF_ALLOC == 0 {
		return false
	}
	if _, part := parentOf(y.Name); part && y.IsFunc() {
		return false
	}
	return !byContent(y) || !anonymous(y.Name)
}

// constants pairs the local constants that a name tells and whose content is the
// same, so that shipped code uses those that are there. Not those that linkers merge with
// others, which are wherever the same content is, and not those that lead into functions.
func (d *differ) constants() {
	group := func(o *objfile.Object) map[string][]*objfile.Symbol {
		m := make(map[string][]*objfile.Symbol)
		for _, y := range o.Symbols {
			if listed(y) && y.Bind == elf.STB_LOCAL && byContent(y) && sized(y) && !anonymous(y.Name) {
				k := y.File + "\x00" + baseName(y.Name)
				m[k] = append(m[k], y)
			}
		}
		return m
	}
	pre, post := group(d.pre), group(d.post)
	for _, k := range sortedKeys(post) {
		if p, q := pre[k], post[k]; len(p) == 1 && len(q) == 1 && p[0].Size == q[0].Size && p[0].Section.Align >= q[0].Section.Align &&
			d.sameBytes(whole(p[0]), whole(q[0]), false) {
			if (p[0].Section.Flags|q[0].Section.Flags)&elf.SHF_MERGE != 0 || leadsInside(q[0]) {
				d.alike[p[0]], d.alike[q[0]] = true, true
				continue
			}
			d.pairUp(p[0], q[0])
		}
	}
}

// leadsInside reports whether a constant has addresses inside of functions, as the
// table of a computed goto has: the program's own leads into the old code.
func leadsInside(y *objfile.Symbol) bool {
	return slices.ContainsFunc(Refs(y.Section), func(r objfile.Ref) bool {
		inside := r.Reloc.Off >= y.Value && r.Reloc.Off < y.Value+y.Size
		return inside && r.Off != 0 && (r.Sym.IsFunc() || isCode(r.Sym.Section))
	})
}

// anonymous reports whether compilers give the name to constants of their own
// making, many of which can have it.
func anonymous(name string) bool {
	for _, p := range []string{"DW.ref.", "__func__", "__FUNCTION__", "__PRETTY_FUNCTION__", "CSWTCH", "_ZZ", "switch.table", "reltable", "__const"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return strings.Contains(name, ".L") || strings.Contains(name, "__unnamed_")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func sortedSymbols[V any](m map[*objfile.Symbol]V) []*objfile.Symbol {
	return slices.SortedFunc(maps.Keys(m), func(a, b *objfile.Symbol) int { return cmp.Compare(a.Index, b.Index) })
}

// display gives a name as it stands in the source.
func display(name string) string { return demangle.Filter(name, demangle.NoClones) }

// refuse notes a refusal, or a warning where the author of the patch allows it.
// override is "" for what cannot be allowed.
func (d *differ) refuse(code string, y *objfile.Symbol, override, why, hint string) {
	file, line := d.declared(y)
	d.refuseAt(code, y.String(), file, line, override, why, hint)
}

func (d *differ) refuseAt(code, what, file string, line int, override, why, hint string) {
	if file == "" {
		file = d.post.Path
	}
	f := Finding{Code: code, Symbol: what, File: file, Line: line, Why: why, Hint: hint, Override: override}
	if override != "" && d.allow[override] {
		d.out.Warnings = append(d.out.Warnings, f)
		return
	}
	if override != "" {
		hint += "; or allow it by the name " + override
	}
	d.refused = append(d.refused, &fault.Error{
		Kind: fault.Unfit, Code: code, What: "cannot patch a change of " + display(what), Where: location(file, line), Why: why, Hint: hint, Details: f,
	})
}

// warn notes what does not stand in the way.
func (d *differ) warn(code string, y *objfile.Symbol, why, hint string) {
	file, line := d.declared(y)
	if file == "" {
		file = d.post.Path
	}
	d.out.Warnings = append(d.out.Warnings, Finding{Code: code, Symbol: y.String(), File: file, Line: line, Why: why, Hint: hint})
}
