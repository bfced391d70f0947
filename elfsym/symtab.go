package elfsym

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// Table says where a symbol was found.
type Table uint8

// The symbol tables.
const (
	Symtab    Table = iota // .symtab of the file itself
	Dynsym                 // .dynsym: what the dynamic linker sees
	DebugFile              // .symtab of the separate debug file
	DebugData              // .symtab within .gnu_debugdata
)

// String gives the usual name of the table.
func (t Table) String() string {
	switch t {
	case Symtab:
		return ".symtab"
	case Dynsym:
		return ".dynsym"
	case DebugFile:
		return "debug file"
	case DebugData:
		return ".gnu_debugdata"
	}
	return "unknown table"
}

// Sym is one entry of a symbol table as it stands in the file. Name, File and
// Version are parts of the file's tables: they must not be changed, and are to
// be used only during the call that was given them.
type Sym struct {
	Index   uint32
	Name    []byte // without "@VERSION"
	File    []byte // for local symbols of .symtab: the STT_FILE symbol above
	Version []byte // empty if unversioned
	Hidden  bool   // a version that new references do not get ("name@VERSION")
	Value   uint64
	Size    uint64
	Type    elf.SymType
	Bind    elf.SymBind
	Vis     elf.SymVis
	Section elf.SectionIndex // SHN_UNDEF: not defined here
}

// Defined reports whether the symbol stands for an address in this file: not
// undefined, absolute, common or thread-local.
func (s *Sym) Defined() bool {
	switch s.Section {
	case elf.SHN_UNDEF, elf.SHN_ABS, elf.SHN_COMMON:
		return false
	}
	return s.Type != elf.STT_TLS && s.Type != elf.STT_FILE && s.Type != elf.STT_SECTION
}

// sttGNUIFunc is STT_GNU_IFUNC, whose value is the address of a resolver.
const sttGNUIFunc = elf.STT_GNU_IFUNC

// symtab is a loaded symbol table.
type symtab struct {
	syms, str []byte
	err       error
}

// HasSymtab reports whether the file has a .symtab with content, so that it is
// not stripped.
func (im *Image) HasSymtab() bool {
	s, ok := im.sectionOfType(elf.SHT_SYMTAB)
	return ok && s.Size > symSize
}

// table loads a table once.
func (im *Image) table(t Table) *symtab {
	if t > Dynsym {
		return &symtab{}
	}
	if im.tables[t] == nil {
		st := &symtab{}
		im.tables[t] = st
		if t == Symtab {
			st.err = im.loadSymtab(st)
		} else {
			st.err = im.loadDynsym(st)
		}
		if st.err != nil {
			st.syms, st.str = nil, nil
		}
	}
	return im.tables[t]
}

func (im *Image) loadSymtab(st *symtab) error {
	syms, str, err := im.symtabSections()
	if err != nil || syms.Size == 0 {
		return err
	}
	if st.syms, err = im.SectionData(syms, maxTable); err != nil {
		return err
	}
	st.str, err = im.SectionData(str, maxTable)
	return err
}

// symtabSections finds .symtab and its strings, which have no size if there is none, and
// lie within the file.
func (im *Image) symtabSections() (syms, str Section, err error) {
	if err := im.SectionsErr(); err != nil {
		return Section{}, Section{}, err
	}
	syms, ok := im.sectionOfType(elf.SHT_SYMTAB)
	if !ok || syms.Size == 0 {
		return Section{}, Section{}, nil
	}
	if syms.Entsize != symSize || syms.Size%symSize != 0 {
		return Section{}, Section{}, im.damaged("its .symtab has %d bytes, in entries of %d", syms.Size, syms.Entsize)
	}
	str, ok = im.sections().at(syms.Link)
	if !ok || str.Type != elf.SHT_STRTAB {
		return Section{}, Section{}, im.damaged("its .symtab has no string table")
	}
	for _, s := range []Section{syms, str} {
		if err := im.plainContent(s, maxTable); err != nil {
			return Section{}, Section{}, err
		}
	}
	return syms, str, nil
}

func (im *Image) loadDynsym(st *symtab) error {
	d := im.dynamic()
	addr, ok := im.dynAddr(elf.DT_SYMTAB)
	if d.err != nil || !ok {
		return d.err
	}
	if ent, ok := im.DynTag(elf.DT_SYMENT); ok && ent != symSize {
		return im.damaged("its .dynsym has entries of %d bytes", ent)
	}
	n, err := im.dynsymCount(addr)
	if err != nil {
		return err
	}
	if st.syms, err = im.bytesAt(addr, uint64(n)*symSize, maxTable); err != nil {
		return err
	}
	st.str, err = im.dynStrings()
	return err
}

// dynsymCount gives the number of entries of .dynsym. The dynamic section does
// not say it: the section header does, or DT_HASH; DT_GNU_HASH names only the
// defined ones, so that the relocations are needed for the others.
func (im *Image) dynsymCount(addr uint64) (uint32, error) {
	if s, ok := im.sectionOfType(elf.SHT_DYNSYM); ok && s.Addr == addr && s.Size%symSize == 0 && s.Size < maxTable {
		return uint32(s.Size / symSize), nil
	}
	if hash, ok := im.dynAddr(elf.DT_HASH); ok {
		var h [8]byte
		if err := im.ReadVaddr(h[:], hash); err == nil {
			return binary.LittleEndian.Uint32(h[4:]), nil
		}
	}
	n, err := im.gnuHashCount()
	if err != nil {
		return 0, err
	}
	err = im.Relocs(func(r Reloc) bool {
		n = max(n, r.Sym+1)
		return true
	})
	return n, err
}

// Symbols visits every entry of Symtab or Dynsym in the order of the file,
// except the empty entry 0, until visit returns false. It allocates nothing per
// symbol: the Sym is the same one in every call. A file that does not have the
// table has no symbols; a table that does not add up is fault "damaged-elf".
func (im *Image) Symbols(t Table, visit func(*Sym) bool) error {
	st := im.table(t)
	if st.err != nil {
		return st.err
	}
	var vers *versions
	if t == Dynsym {
		vers = im.symbolVersions()
	}
	var s Sym
	var file []byte
	// Names may overlap and be shared, so that a hostile table could make us
	// read the string table once per symbol. Real ones stay far below this.
	budget := 16*len(st.str) + 1024*(len(st.syms)/symSize) + 4096
	for i, n := uint32(1), uint32(len(st.syms)/symSize); i < n; i++ {
		st.decode(i, &s)
		if budget -= len(s.Name); budget < 0 {
			return im.damaged("the names of its symbols overlap")
		}
		if t == Dynsym {
			s.Version, s.Hidden = vers.of(i)
		} else {
			if s.Type == elf.STT_FILE {
				file = s.Name
			}
			if s.Bind == elf.STB_LOCAL {
				s.File = file
			}
			s.splitVersion()
		}
		if !visit(&s) {
			return nil
		}
	}
	return nil
}

// decode fills in entry i, which must exist.
func (st *symtab) decode(i uint32, s *Sym) {
	fillSym(s, i, st.syms[uint64(i)*symSize:][:symSize])
	// A name that is not terminated is cut at the end of the table.
	s.Name = st.from(i)
	if end := bytes.IndexByte(s.Name, 0); end >= 0 {
		s.Name = s.Name[:end]
	}
}

// fillSym decodes an entry of a symbol table (System V ABI, chapter 4, "Symbol Table"), but for
// its name.
func fillSym(s *Sym, i uint32, b []byte) {
	le := binary.LittleEndian
	*s = Sym{
		Index: i,
		Value: le.Uint64(b[8:]), Size: le.Uint64(b[16:]),
		Type: elf.SymType(b[4] & 0xf), Bind: elf.SymBind(b[4] >> 4), Vis: elf.SymVis(b[5] & 3),
		Section: elf.SectionIndex(le.Uint16(b[6:])),
	}
}

// from gives the string table from the name of entry i on.
func (st *symtab) from(i uint32) []byte {
	if off := st.nameAt(i); off < uint64(len(st.str)) {
		return st.str[off:]
	}
	return nil
}

func (st *symtab) nameAt(i uint32) uint64 {
	return uint64(binary.LittleEndian.Uint32(st.syms[uint64(i)*symSize:]))
}

// symtabEntry reads one entry of .symtab. What it refers to may be kept.
func (im *Image) symtabEntry(index uint32) (Sym, error) {
	x, err := im.source(Symtab)
	if err != nil {
		return Sym{}, err
	}
	if uint64(index) >= x.entries/symSize {
		return Sym{}, im.damaged("it has no symbol %d", index)
	}
	entry, err := x.entriesAt(uint64(index)*symSize, symSize)
	if err != nil {
		return Sym{}, err
	}
	var s Sym
	fillSym(&s, index, entry)
	if s.Name, _, err = x.name(uint64(binary.LittleEndian.Uint32(entry)), x.strings); err != nil {
		return Sym{}, err
	}
	if s.Bind == elf.STB_LOCAL {
		if s.File, err = x.fileAbove(index); err != nil {
			return Sym{}, err
		}
	}
	s.splitVersion()
	return s, nil
}

// splitVersion takes the version off a name of .symtab, where the linker writes
// it as "name@VERSION" or, if it is the default one, "name@@VERSION".
func (s *Sym) splitVersion() {
	i := bytes.IndexByte(s.Name, '@')
	if i <= 0 {
		return
	}
	version := s.Name[i+1:]
	s.Name = s.Name[:i]
	if len(version) > 0 && version[0] == '@' {
		version = version[1:]
	} else {
		s.Hidden = true
	}
	s.Version = version
}

// DynSym gives one entry of .dynsym, as relocations name it. Its Name may be
// kept.
func (im *Image) DynSym(index uint32) (Sym, error) {
	st := im.table(Dynsym)
	if st.err != nil {
		return Sym{}, st.err
	}
	if uint64(index) >= uint64(len(st.syms)/symSize) {
		return Sym{}, im.damaged("a relocation names symbol %d of %d", index, len(st.syms)/symSize)
	}
	var s Sym
	st.decode(index, &s)
	s.Version, s.Hidden = im.symbolVersions().of(index)
	return s, nil
}
