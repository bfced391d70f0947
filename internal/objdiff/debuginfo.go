package objdiff

import (
	"debug/dwarf"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"hotpatch/internal/objfile"
)

// debugInfo is what the comparison needs of an object's DWARF.
type debugInfo struct {
	err       error // why there is none, or why it cannot be read
	data      *dwarf.Data
	producers []string // DW_AT_producer of the units

	read     bool // whether the following are there
	entries  map[dwarf.Offset]*entry
	byPlace  map[codePlace]*entry // functions and variables by where they are
	byName   map[string]*entry    // functions and variables outside of functions by mangled name
	locals   map[string]*entry    // variables in functions, by mangled name or as clang calls them
	inlined  []*entry             // inlined calls
	vars     map[string]bool      // qualified names of variables outside of functions, stored or not
	steps    int                  // members looked at in comparisons of types
	types    map[string][]*entry  // named types that are complete, by sort and qualified name
	enums    []*entry             // with a name or without
	numbered map[*entry][]*entry  // types that compilers number, by what they are in, in order
}

// entry is one debugging information entry.
type entry struct {
	tag      dwarf.Tag
	name     string
	linkage  string // mangled
	file     string
	line     int
	column   int
	origin   dwarf.Offset // the entry that this one completes, or 0
	typ      dwarf.Offset // 0 for void
	parent   *entry
	children []*entry       // members, enumerators, dimensions, base classes
	params   []dwarf.Offset // types that a template is instantiated with
	formals  []*entry       // parameters of a function
	size     int64          // bytes; -1 if it does not say
	declared bool           // a declaration only
	callable bool           // a type with an operator()
	placed   bool           // a variable with a place of its own
	where    string         // data_member_location and bit offsets, as text
	value    int64          // of an enumerator or of the number of elements
	encoding int64          // of a base type
	ranges   [][2]uint64
}

// info gives the debugging information of an object, at first only whether it is
// there and who made it.
func (d *differ) info(o *objfile.Object) *debugInfo {
	i := d.debug[o]
	if i == nil {
		i = &debugInfo{}
		d.debug[o] = i
		if i.data, i.err = o.DWARF(); i.err == nil {
			i.err = i.safely(i.readProducers)
		}
	}
	return i
}

// safely turns panics of debug/dwarf about damaged input into errors.
func (i *debugInfo) safely(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("damaged debugging information: %v", r)
		}
	}()
	return f()
}

func (i *debugInfo) readProducers() error {
	for r := i.data.Reader(); ; r.SkipChildren() {
		e, err := r.Next()
		if e == nil || err != nil {
			return err
		}
		if p, _ := e.Val(dwarf.AttrProducer).(string); e.Tag == dwarf.TagCompileUnit && !slices.Contains(i.producers, p) {
			i.producers = append(i.producers, p)
		}
	}
}

// full gives the debugging information with all entries read.
func (d *differ) full(o *objfile.Object) *debugInfo {
	i := d.info(o)
	if i.err == nil && !i.read {
		i.read = true
		i.entries = make(map[dwarf.Offset]*entry)
		i.byPlace = make(map[codePlace]*entry)
		i.byName = make(map[string]*entry)
		i.locals = make(map[string]*entry)
		i.types = make(map[string][]*entry)
		i.numbered = make(map[*entry][]*entry)
		i.vars = make(map[string]bool)
		i.err = i.safely(func() error { return i.readEntries(o) })
	}
	return i
}

// maxNesting bounds the depth of the tree of entries.
const maxNesting = 1000

func (i *debugInfo) readEntries(o *objfile.Object) error {
	var stack []*entry
	var files []*dwarf.LineFile
	var addrs []byte // of the unit
	all := o.DebugAddr()
	r := i.data.Reader()
	for {
		e, err := r.Next()
		if e == nil || err != nil {
			return err
		}
		if e.Tag == 0 {
			if len(stack) > 0 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		if e.Tag == dwarf.TagCompileUnit || e.Tag == dwarf.TagPartialUnit || e.Tag == dwarf.TagTypeUnit {
			stack, files, addrs = nil, nil, nil
			if base, ok := e.Val(dwarf.AttrAddrBase).(int64); ok && base >= 0 && base <= int64(len(all)) {
				addrs = all[base:]
			}
			if lines, err := i.data.LineReader(e); err == nil && lines != nil {
				files = lines.Files()
			}
		}
		n := i.entry(o, e, files, addrs)
		if len(stack) > 0 {
			n.parent = stack[len(stack)-1]
			i.belongs(n)
			switch n.tag {
			case dwarf.TagFormalParameter:
				if n.parent.tag == dwarf.TagSubprogram {
					n.parent.formals = append(n.parent.formals, n)
				}
			case dwarf.TagMember, dwarf.TagInheritance, dwarf.TagEnumerator, dwarf.TagSubrangeType:
				n.parent.children = append(n.parent.children, n)
			}
		}
		i.entries[e.Offset] = n
		i.index(n)
		if e.Children {
			if len(stack) == maxNesting {
				return fmt.Errorf("entries are nested more than %d levels deep", maxNesting)
			}
			stack = append(stack, n)
		}
	}
}

// entry takes over what is needed of an entry.
func (i *debugInfo) entry(o *objfile.Object, e *dwarf.Entry, files []*dwarf.LineFile, addrs []byte) *entry {
	n := &entry{tag: e.Tag, size: -1, value: -1}
	for _, f := range e.Field {
		switch f.Attr {
		case dwarf.AttrName:
			n.name, _ = f.Val.(string)
		case dwarf.AttrLinkageName:
			n.linkage, _ = f.Val.(string)
		case dwarf.AttrDeclFile:
			if k, ok := f.Val.(int64); ok && k >= 0 && k < int64(len(files)) && files[k] != nil {
				n.file = files[k].Name
			}
		case dwarf.AttrDeclLine:
			if k, ok := f.Val.(int64); ok && k > 0 && k < 1<<31 {
				n.line = int(k)
			}
		case dwarf.AttrDeclColumn:
			if k, ok := f.Val.(int64); ok && k > 0 && k < 1<<31 {
				n.column = int(k)
			}
		case dwarf.AttrAbstractOrigin, dwarf.AttrSpecification:
			n.origin, _ = f.Val.(dwarf.Offset)
		case dwarf.AttrType:
			n.typ, _ = f.Val.(dwarf.Offset)
		case dwarf.AttrByteSize:
			if k, ok := f.Val.(int64); ok {
				n.size = k
			}
		case dwarf.AttrDeclaration:
			n.declared, _ = f.Val.(bool)
		case dwarf.AttrExternal:
			if e.Tag == dwarf.TagMember { // a static member is a variable
				n.declared = true
			}
		case dwarf.AttrDataMemberLoc, dwarf.AttrDataBitOffset, dwarf.AttrBitOffset, dwarf.AttrBitSize:
			n.where += fmt.Sprintf("%s %v ", f.Attr, f.Val)
		case dwarf.AttrConstValue, dwarf.AttrCount:
			if k, ok := f.Val.(int64); ok {
				n.value = k
			}
		case dwarf.AttrUpperBound:
			if k, ok := f.Val.(int64); ok {
				n.value = k + 1
			}
		case dwarf.AttrEncoding:
			n.encoding, _ = f.Val.(int64)
		case dwarf.AttrLocation:
			if b, ok := f.Val.([]byte); ok && e.Tag == dwarf.TagVariable {
				i.locate(o, n, b, addrs)
			}
		}
	}
	switch e.Tag {
	case dwarf.TagInlinedSubroutine:
		n.ranges, _ = i.data.Ranges(e)
	case dwarf.TagSubprogram:
		if ranges, err := i.data.Ranges(e); err == nil {
			for _, r := range ranges {
				if s, off, ok := o.AtAddress(r[0]); ok {
					i.byPlace[codePlace{s, off}] = n
				}
			}
		}
	}
	return n
}

// locate notes where a variable with a fixed address is: DW_OP_addr and nothing else, or
// DW_OP_addrx (DWARF 5, 2.5.1.1); or, of a thread-local one, its offset, which is relocated as if
// it were an address (DW_OP_const8u; DW_OP_form_tls_address or GNU's before it).
func (i *debugInfo) locate(o *objfile.Object, n *entry, loc, addrs []byte) {
	const opAddr, opAddrx, opConst8u, opTLS, opTLSBefore = 0x03, 0xa1, 0x0e, 0x9b, 0xe0
	if len(loc) < 2 {
		return
	}
	var addr uint64
	switch k, w := binary.Uvarint(loc[1:]); {
	case loc[0] == opAddr && len(loc) == 9:
		addr = binary.LittleEndian.Uint64(loc[1:])
	case loc[0] == opConst8u && len(loc) == 10 && (loc[9] == opTLS || loc[9] == opTLSBefore):
		addr = binary.LittleEndian.Uint64(loc[1:])
	case loc[0] == opAddrx && w == len(loc)-1 && k < uint64(len(addrs)/8):
		addr = binary.LittleEndian.Uint64(addrs[8*k:])
	default:
		return
	}
	if s, off, ok := o.AtAddress(addr); ok {
		i.byPlace[codePlace{s, off}] = n
		n.placed = true
	}
}

// index notes an entry where it is looked for later.
func (i *debugInfo) index(n *entry) {
	switch n.tag {
	case dwarf.TagInlinedSubroutine:
		i.inlined = append(i.inlined, n)
	case dwarf.TagSubprogram, dwarf.TagVariable:
		if name := n.mangled(); n.line != 0 && i.byName[name] == nil && !inFunction(n) {
			i.byName[name] = n
		}
		switch f := i.place(n); {
		case n.tag != dwarf.TagVariable || n.name == "":
		case !inFunction(n):
			i.vars[qualified(n)] = true
		case f != nil && f.tag == dwarf.TagSubprogram && f.name != "":
			name := f.mangled() + "." + n.name
			if n.linkage != "" {
				name = n.linkage
			}
			if i.locals[name] != nil { // no telling which
				n = &entry{}
			}
			i.locals[name] = n
		}
	case dwarf.TagStructType, dwarf.TagClassType, dwarf.TagUnionType, dwarf.TagEnumerationType:
		if n.tag == dwarf.TagEnumerationType && !n.declared {
			i.enums = append(i.enums, n)
		}
		if n.name != "" && !n.declared {
			k := sortOfType(n) + " " + qualified(n)
			i.types[k] = append(i.types[k], n)
		}
	case dwarf.TagTypedef:
		if n.name != "" { // of a type without a name: see layouts
			k := "typedef " + qualified(n)
			i.types[k] = append(i.types[k], n)
		}
	}
}

// hasVariable reports whether the source has a variable outside of functions, whether it
// is stored or not.
func (i *debugInfo) hasVariable(y *objfile.Symbol) bool {
	name := strings.ReplaceAll(display(baseName(y.Name)), "(anonymous namespace)", "(anonymous)")
	return i.err == nil && i.vars[name]
}

func inFunction(n *entry) bool {
	for p := n.parent; p != nil; p = p.parent {
		if p.tag == dwarf.TagSubprogram {
			return true
		}
	}
	return false
}

func sortOfType(n *entry) string {
	switch n.tag {
	case dwarf.TagUnionType:
		return "union"
	case dwarf.TagEnumerationType:
		return "enum"
	}
	return "struct"
}

// qualified gives a name with those of the namespaces, classes and functions
// around it.
func qualified(n *entry) string {
	s := n.name
	for p := n.parent; p != nil; p = p.parent {
		switch p.tag {
		case dwarf.TagNamespace, dwarf.TagStructType, dwarf.TagClassType, dwarf.TagUnionType, dwarf.TagSubprogram:
			if p.name == "" {
				s = "(anonymous)::" + s
			} else {
				s = p.name + "::" + s
			}
		}
	}
	return s
}

// resolve follows an entry to the one that has its name.
func (i *debugInfo) resolve(n *entry) *entry {
	return i.follow(n, func(n *entry) bool { return n.line != 0 && n.name != "" })
}

// follow goes from an entry to those that it completes, up to one that is wanted, or the last one.
func (i *debugInfo) follow(n *entry, wanted func(*entry) bool) *entry {
	for range 10 {
		if n == nil || wanted(n) || n.origin == 0 {
			break
		}
		n = i.entries[n.origin]
	}
	return n
}

// declared gives where a symbol is declared, as far as debugging information
// tells.
func (d *differ) declared(y *objfile.Symbol) (file string, line int) {
	if y == nil || y.Section == nil {
		return "", 0
	}
	for _, o := range []*objfile.Object{d.post, d.pre} {
		if y.Index >= len(o.Symbols) || o.Symbols[y.Index] != y {
			continue
		}
		i := d.full(o)
		n := i.byPlace[codePlace{y.Section, y.Value}]
		if _, class, ok := strings.Cut(display(y.Name), " for "); ok && isClassData(y.Name) {
			for _, t := range i.types["struct "+strings.ReplaceAll(class, "(anonymous namespace)", "(anonymous)")] {
				n = t
			}
		}
		if n == nil { // gcc leaves out the address of some, such as folded functions
			n = i.byName[y.Name]
		}
		if m := i.follow(n, func(n *entry) bool { return n.line != 0 }); m == nil || m.line == 0 { // what compilers make for a lambda
			for _, l := range i.reached(n) {
				n = l
			}
		}
		for range 10 {
			if n == nil || file != "" && line != 0 {
				break
			}
			if file == "" {
				file = n.file
			}
			if line == 0 {
				line = n.line
			}
			n = i.entries[n.origin]
		}
	}
	return file, line
}

// inlinedChanges adds to each changed function the changed ones that are inlined in
// it anywhere, in either build.
func (d *differ) inlinedChanges() {
	changed := make(map[string]bool)
	for _, f := range d.out.Changed {
		changed[baseName(f.Pre.Name)] = true
	}
	if len(changed) < 2 {
		return
	}
	for _, o := range []*objfile.Object{d.pre, d.post} {
		i := d.full(o)
		at := make(map[*objfile.Section][]*entry)
		for _, n := range i.inlined {
			if f := i.resolve(n); f == nil || !changed[f.mangled()] || len(n.ranges) == 0 {
				continue
			}
			if s, _, ok := o.AtAddress(n.ranges[0][0]); ok {
				at[s] = append(at[s], n)
			}
		}
		for k := range d.out.Changed {
			f := &d.out.Changed[k]
			y := f.Pre
			if o == d.post {
				y = f.Post
			}
			for _, n := range at[y.Section] {
				name := i.resolve(n).mangled()
				if lo := y.Section.Address(y.Value); n.ranges[0][0] >= lo && n.ranges[0][0] < lo+y.Size && !slices.Contains(f.Inlined, name) {
					f.Inlined = append(f.Inlined, name)
					slices.Sort(f.Inlined)
				}
			}
		}
	}
}

// mangled gives the name of a function or variable as symbols have it.
func (n *entry) mangled() string {
	if n.linkage != "" {
		return n.linkage
	}
	return n.name
}

// inlinedAt gives the functions that are inlined where two functions begin to
// differ, in either of them.
func (d *differ) inlinedAt(diff *difference) []string {
	var names []string
	look := func(o *objfile.Object, s *objfile.Section, off uint64) {
		i := d.full(o)
		for _, n := range i.inlined {
			if !slices.ContainsFunc(n.ranges, func(r [2]uint64) bool { return r[0] <= s.Address(off) && s.Address(off) < r[1] }) {
				continue
			}
			if f := i.resolve(n); f != nil {
				if name := f.mangled(); name != "" && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	look(d.pre, diff.preIn, diff.pre)
	look(d.post, diff.postIn, diff.post)
	slices.Sort(names)
	return names
}

func location(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}
