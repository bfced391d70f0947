package elfsym

import (
	"debug/elf"
	"fmt"
	"maps"
	"path"
	"slices"

	"hotpatch/internal/fault"
)

// Symbol is a defined symbol of a module in a process.
type Symbol struct {
	Name    string // mangled, without version
	Module  *Module
	Addr    uint64 // runtime address; of an IFUNC: of its resolver
	Size    uint64 // in bytes; 0 if the table does not say
	Type    elf.SymType
	Bind    elf.SymBind
	Vis     elf.SymVis
	File    string // local symbols: the source file, as the compiler was given it
	Version string // "" if unversioned
	Hidden  bool   // a version that new references do not get ("name@VERSION")
	Table   Table
}

// IsFunc reports whether the symbol is the entry of a function. An IFUNC is not:
// its address is that of a resolver (see IFuncImplementations).
func (s Symbol) IsFunc() bool { return s.Type == elf.STT_FUNC }

// IsIFunc reports whether the symbol's address is that of a resolver, which
// chooses the implementation when the program starts.
func (s Symbol) IsIFunc() bool { return s.Type == sttGNUIFunc }

// Demangled gives the name as C++ source has it, or Name if it is not mangled.
func (s Symbol) Demangled() string { return Demangle(s.Name) }

// String gives "module!file.c:name at 0x…", with the demangled name.
func (s Symbol) String() string {
	return fmt.Sprintf("%s at %#x", s.Query(), s.Addr)
}

// Query gives the symbol's name in the form in which ParseQuery takes it, as
// exactly as the symbol table allows.
func (s Symbol) Query() string {
	q := s.Demangled()
	if s.Version != "" {
		q = s.Name + "@" + s.Version
	}
	if s.File != "" {
		q = path.Base(s.File) + ":" + q
	}
	if s.Module != nil {
		q = s.Module.Name + "!" + q
	}
	return q
}

// symbol makes a Symbol of a table entry.
func (m *Module) symbol(t Table, s *Sym) Symbol {
	return Symbol{
		Name: string(s.Name), Module: m, Addr: m.Addr(s.Value), Size: s.Size,
		Type: s.Type, Bind: s.Bind, Vis: s.Vis, File: string(s.File),
		Version: string(s.Version), Hidden: s.Hidden, Table: t,
	}
}

// named reports whether a table entry is a function or a variable of the
// module: what Lookup and Find look for.
func (m *Module) named(s *Sym) bool {
	switch s.Type {
	case elf.STT_FUNC, elf.STT_OBJECT, sttGNUIFunc:
		return s.Defined() && len(s.Name) > 0 && m.Image.segment(s.Value) != nil
	}
	return false
}

// scan visits the functions and variables of one module in one table. Its
// faults name the module.
func (m *Module) scan(im *Image, t Table, visit func(Table, *Sym) bool) error {
	return m.located(im.Symbols(inFile(t), func(s *Sym) bool { return !m.named(s) || visit(t, s) }))
}

// inFile gives the table as it is called in the file that has it, which may be another
// file than the module's.
func inFile(t Table) Table {
	if t == Dynsym {
		return Dynsym
	}
	return Symtab
}

// located makes the faults of an image name the module.
func (m *Module) located(err error) error {
	if e, ok := err.(*fault.Error); ok && e.Where == "" {
		e.Where = m.Name
	}
	return err
}

// scanAll visits the functions and variables of the module in all tables:
// .symtab and .dynsym, and if there is no .symtab, what takes its place, until
// visit returns false.
func (s *Space) scanAll(m *Module, visit func(Table, *Sym) bool) error {
	if m.Image == nil {
		return nil
	}
	more := true
	until := func(t Table, sym *Sym) bool {
		more = visit(t, sym)
		return more
	}
	if err := m.scan(m.Image, Symtab, until); err != nil || !more {
		return err
	}
	if err := m.scan(m.Image, Dynsym, until); err != nil || !more {
		return err
	}
	if d := s.debugTable(m); d.image != nil {
		return m.scan(d.image, d.table, visit)
	}
	return nil
}

// candidates gives the modules in which names are looked up.
func (s *Space) candidates() []*Module {
	var list []*Module
	for _, m := range s.Modules {
		if !m.Ours && m.Image != nil {
			list = append(list, m)
		}
	}
	return list
}

// Lookup finds every defined function, variable and IFUNC that has exactly one
// of these mangled names, in all modules but patch libraries, with any binding
// (static ones too). Every table is scanned once. A symbol that stands in
// several tables of a module is given once.
//
// A separate debug file or .gnu_debugdata is looked into if a module has no
// .symtab and does not export all of the names. A damaged table is a fault: a
// symbol might be missed.
func (s *Space) Lookup(names []string) (map[string][]Symbol, error) {
	return s.LookupIn(names, func(*Module) bool { return true })
}

// LookupIn is Lookup in some of the modules.
func (s *Space) LookupIn(names []string, in func(*Module) bool) (map[string][]Symbol, error) {
	c := newCollector(names)
	for _, m := range s.candidates() {
		if !in(m) {
			continue
		}
		if err := c.module(s, m); err != nil {
			return nil, err
		}
	}
	return c.byName(), nil
}

// Exports finds what some of the modules export by these names, in all versions: what
// their dynamic linker could find. Where the modules have hash tables, nothing else is
// read than these names.
func (s *Space) Exports(names []string, in func(*Module) bool) (map[string][]Symbol, error) {
	c := newCollector(names)
	for _, m := range s.candidates() {
		if !in(m) {
			continue
		}
		hashed, err := c.exports(m)
		if err == nil && !hashed {
			err = m.scan(m.Image, Dynsym, c.visit(m))
		}
		if err != nil {
			return nil, err
		}
	}
	return c.byName(), nil
}

// collector gathers the symbols of given names.
type collector struct {
	want   map[string]int // index into inHere
	inHere []bool         // found in the module that is being scanned
	found  symbolSet
}

func newCollector(names []string) *collector {
	c := &collector{want: make(map[string]int, len(names))}
	for _, n := range names {
		if _, ok := c.want[n]; !ok {
			c.want[n] = len(c.want)
		}
	}
	c.inHere = make([]bool, len(c.want))
	return c
}

// byName gives what was found.
func (c *collector) byName() map[string][]Symbol {
	found := make(map[string][]Symbol, len(c.want))
	for _, sym := range c.found.list {
		found[sym.Name] = append(found[sym.Name], sym)
	}
	return found
}

// visit notes the symbols of a module that have one of the names.
func (c *collector) visit(m *Module) func(Table, *Sym) bool {
	return func(t Table, sym *Sym) bool {
		if i, ok := c.want[string(sym.Name)]; ok {
			c.inHere[i] = true
			c.found.add(m.symbol(t, sym))
		}
		return true
	}
}

func (c *collector) module(s *Space, m *Module) error {
	clear(c.inHere)
	visit := c.visit(m)
	search := own
	if len(c.want) <= maxHashed && !m.Image.HasSymtab() {
		// What a stripped module has of its own are the functions that it exports.
		hashed, err := c.exports(m)
		if err != nil || hashed && (!slices.Contains(c.inHere, false) || s.debugTable(m).image == nil) {
			return err
		}
		if hashed {
			search = separate
		}
	}
	if quick, err := c.mentions(s, m, search, visit); quick || err != nil {
		return err
	}
	if search == own {
		if err := m.scan(m.Image, Symtab, visit); err != nil {
			return err
		}
		if err := m.scan(m.Image, Dynsym, visit); err != nil {
			return err
		}
		if !slices.Contains(c.inHere, false) {
			return nil
		}
	}
	if d := s.debugTable(m); d.image != nil {
		return m.scan(d.image, d.table, visit)
	}
	return nil
}

// maxHashed is for how many names it is worthwhile to ask a hash table, which takes a few
// system calls for each, instead of reading all symbols.
const maxHashed = 256

// exports looks the names up in the hash table of a module. ok is false if it has none, and
// then it may export them nevertheless.
func (c *collector) exports(m *Module) (ok bool, err error) {
	g, ok := m.Image.gnuHash()
	if !ok {
		return false, m.located(m.Image.DynamicErr())
	}
	visit := c.visit(m)
	for name := range c.want {
		list, err := m.Image.exported(g, name)
		if err != nil {
			return false, m.located(err)
		}
		for i := range list {
			if m.named(&list[i]) {
				visit(Dynsym, &list[i])
			}
		}
	}
	return true, nil
}

// mentions visits what module does, if the names are few enough to search for them: in the
// tables of the module itself, and if it does not have all there, in the separate one.
func (c *collector) mentions(s *Space, m *Module, in tables, visit func(Table, *Sym) bool) (ok bool, err error) {
	names := slices.Collect(maps.Keys(c.want))
	if in == own {
		found, ok, err := s.mentionsOf(m, names, own)
		if err != nil || !ok {
			return false, err
		}
		for _, x := range found {
			for i := range x.list {
				visit(x.list[i].table, &x.list[i].sym)
			}
		}
		if !slices.Contains(c.inHere, false) {
			return true, nil
		}
	}
	found, ok, err := s.mentionsOf(m, names, separate)
	if err != nil || !ok {
		return false, err
	}
	for _, x := range found {
		for i := range x.debug {
			visit(x.debug[i].table, &x.debug[i].sym)
		}
	}
	return true, nil
}

// symbolSet is a list of symbols in the order in which they were found. What
// several tables of a module say of one symbol becomes one entry.
type symbolSet struct {
	list []Symbol
	at   map[symbolKey]int // index into list
}

// symbolKey is what makes two table entries the same symbol. Only one of two
// tables may know the version: any marks the first entry of any version.
type symbolKey struct {
	module  *Module
	name    string
	addr    uint64
	ifunc   bool
	version string
	any     bool
}

// add adds a symbol, or what it says beyond the entry that is there already.
func (x *symbolSet) add(sym Symbol) {
	if x.at == nil {
		x.at = map[symbolKey]int{}
	}
	exact := symbolKey{module: sym.Module, name: sym.Name, addr: sym.Addr, ifunc: sym.IsIFunc(), version: sym.Version}
	first := exact
	first.version, first.any = "", true
	i, ok := x.at[exact]
	if !ok {
		i, ok = x.at[first]
		ok = ok && (sym.Version == "" || x.list[i].Version == "")
	}
	if !ok {
		i = len(x.list)
		x.list = append(x.list, sym)
		if _, ok := x.at[first]; !ok {
			x.at[first] = i
		}
	}
	x.at[exact] = i
	old := &x.list[i]
	if old.Version == "" {
		old.Version, old.Hidden = sym.Version, sym.Hidden
	}
	if old.File == "" && old.Bind == elf.STB_LOCAL {
		old.File = sym.File
	}
	old.Size = max(old.Size, sym.Size)
}
