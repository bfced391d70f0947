package objfile

import (
	"debug/elf"

	"hotpatch/trampoline"
)

// Object is one relocatable object.
type Object struct {
	Path     string     // where it was read from, for people
	Data     []byte     // the whole file; everything else aliases it
	Sections []*Section // by ELF section index; the first one is the null section
	Symbols  []*Symbol  // by ELF symbol index; the first one is the null symbol; empty without a symbol table
	Groups   []*Group   // in the order of the file
	Frames   []*Frame   // the FDEs of .eh_frame, in the order of the file
	CIEs     []*CIE     // the CIEs of .eh_frame, in the order of the file
	Compiler []string   // the distinct strings of .comment, in the order of the file
}

// Section is one section.
type Section struct {
	Index   int
	Name    string
	Type    elf.SectionType
	Flags   elf.SectionFlag
	Align   uint64 // bytes, a power of two, at least 1
	EntSize uint64 // bytes
	Size    uint64 // bytes in memory
	Offset  uint64 // of its bytes in the file
	Link    uint32
	Info    uint32
	Data    []byte // its bytes in the file; nil for SHT_NOBITS

	Relocs  []Reloc   // those that are applied to it (for SHF_COMPRESSED: once it is not), by ascending Off
	Symbols []*Symbol // those defined in it, but for section symbols; by ascending Value, then Index
	Group   *Group    // the group it is a member of, or nil
	Symbol  *Symbol   // its section symbol, or nil: assemblers leave out unused ones

	ends []uint64 // for each of Symbols the highest end of those up to it
}

// Symbol is one symbol.
type Symbol struct {
	Index int
	Name  string // empty for section symbols; the file's name for STT_FILE
	Bind  elf.SymBind
	Type  elf.SymType
	Vis   elf.SymVis
	Value uint64 // offset in Section; for SHN_COMMON its alignment; for SHN_ABS its value
	Size  uint64 // bytes

	// Where is the section index as it stands in the file, which tells undefined,
	// absolute and common symbols apart (elf.SHN_UNDEF, SHN_ABS, SHN_COMMON).
	// For the others it is Section.Index, also beyond SHN_LORESERVE.
	Where   elf.SectionIndex
	Section *Section // where it is defined; nil for undefined, absolute and common symbols
	File    string   // for local symbols: the name of the STT_FILE symbol in front of it, else empty
}

// Reloc is one relocation, always with an addend (SHT_RELA).
type Reloc struct {
	Off    uint64 // of the place, in its section
	Type   elf.R_X86_64
	Sym    *Symbol // never nil; the null symbol if there is none
	Addend int64
}

// Group is a section group (SHT_GROUP). A linker keeps one of all COMDAT groups
// with the same signature.
type Group struct {
	Section   *Section // its own section
	Signature string
	COMDAT    bool
	Members   []*Section
}

// CIE is a common information entry of .eh_frame.
type CIE struct {
	Section     *Section
	Off, Size   uint64  // in its section, the length field included
	Relocs      []Reloc // those within it; they alias Section.Relocs
	Personality *Symbol // what the personality routine's pointer leads to, or nil
}

// Frame is a frame description entry of .eh_frame.
type Frame struct {
	Section   *Section
	Off, Size uint64  // in its section, the length field included
	Relocs    []Reloc // those within it; they alias Section.Relocs
	CIE       *CIE
	Code      *Section // where the described code is; never nil
	CodeOff   uint64   // offset of the described code in Code
	CodeSize  uint64   // bytes
	LSDA      *Section // where its language-specific data is (.gcc_except_table), or nil
	LSDAOff   uint64
}

// Ref is what a relocation refers to.
type Ref struct {
	Reloc Reloc
	// Sym is the symbol that is meant. Where the relocation names a section, it is
	// the symbol defined there that covers the place, or that ends just there; if
	// there is none, the section symbol itself.
	Sym *Symbol
	Off int64 // bytes from Sym
}

// Inst is one instruction with what it refers to by relocations. Its Addr is
// the offset in the section. Where it has a reference, its own Target and
// RIPTarget mean nothing.
type Inst struct {
	trampoline.Inst
	Refs []Ref // by ascending Off of the relocation
}
