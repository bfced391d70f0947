package objfile

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"os"
	"slices"
	"strings"

	"hotpatch/internal/fault"
)

// maxFile bounds the size of an object in bytes.
const maxFile = 2 << 30

var le = binary.LittleEndian

// Open reads and parses an object file. The faults are "object-unreadable",
// "object-too-large" (above 2 GiB), and those of Parse.
func Open(path string) (*Object, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, unreadable(path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, unreadable(path, fmt.Errorf("%s is not a regular file", st.Mode()))
	}
	if st.Size() > maxFile {
		return nil, &fault.Error{Kind: fault.Unfit, Code: "object-too-large", What: "cannot read the object file", Where: path,
			Why: fmt.Sprintf("%d bytes, and the limit is %d", st.Size(), maxFile)}
	}
	data := make([]byte, st.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, unreadable(path, err)
	}
	return Parse(path, data)
}

func unreadable(path string, err error) error {
	return &fault.Error{Kind: fault.Unfit, Code: "object-unreadable", What: "cannot read the object file", Where: path, Err: err}
}

// Empty gives an object of the same compiler that has nothing: what there is before a new
// source file.
func Empty(like *Object) *Object {
	return &Object{Path: like.Path, Compiler: like.Compiler, Sections: []*Section{{}}, Symbols: []*Symbol{{}}}
}

// Parse parses an object file. The result aliases data, which must not change.
// path is for messages only. The faults are "object-not-elf";
// "object-wrong-kind" for an ELF file that is no relocatable object for x86-64,
// 64 bits; and "object-damaged" for one that contradicts itself.
func Parse(path string, data []byte) (*Object, error) {
	p := parser{o: &Object{Path: path, Data: data}, data: data}
	if err := p.header(); err != nil {
		return nil, err
	}
	for _, step := range []func() error{p.sections, p.symbols, p.relocations, p.selfReferences, p.groups, p.frames} {
		if err := step(); err != nil {
			return nil, &fault.Error{
				Kind: fault.Unfit, Code: "object-damaged", What: "cannot understand the object file", Where: path, Why: err.Error(),
				Hint: "compile it again",
			}
		}
	}
	p.comment()
	return p.o, nil
}

type parser struct {
	o        *Object
	data     []byte
	shstrtab []byte
	symtab   *Section // or nil
}

// The sizes of ELF64 structures in bytes (System V ABI, chapter 4).
const (
	ehdrSize = 64
	shdrSize = 64
	symSize  = 24
	relaSize = 24
)

func (p *parser) header() error {
	refuse := func(code, why string) error {
		return &fault.Error{Kind: fault.Unfit, Code: code, What: "this is no object file that can be compared", Where: p.o.Path, Why: why,
			Hint: "give relocatable objects for x86-64, as gcc -c and clang -c write them"}
	}
	switch b := p.data; {
	case bytes.HasPrefix(b, []byte("BC\xc0\xde")):
		return refuse("object-not-elf", "LLVM bitcode, which clang -flto writes")
	case !bytes.HasPrefix(b, []byte(elf.ELFMAG)):
		return refuse("object-not-elf", "it does not begin with the ELF magic number")
	case len(b) < ehdrSize:
		return refuse("object-damaged", fmt.Sprintf("%d bytes are too few for an ELF header", len(b)))
	case b[elf.EI_CLASS] != byte(elf.ELFCLASS64) || b[elf.EI_DATA] != byte(elf.ELFDATA2LSB):
		return refuse("object-wrong-kind", fmt.Sprintf("%s, %s", elf.Class(b[elf.EI_CLASS]), elf.Data(b[elf.EI_DATA])))
	case elf.Machine(le.Uint16(b[18:])) != elf.EM_X86_64:
		return refuse("object-wrong-kind", elf.Machine(le.Uint16(b[18:])).String())
	case elf.Type(le.Uint16(b[16:])) != elf.ET_REL:
		return refuse("object-wrong-kind", elf.Type(le.Uint16(b[16:])).String()+", and not ET_REL")
	}
	return nil
}

// slice gives n bytes of the file from off.
func (p *parser) slice(off, n uint64, what string) ([]byte, error) {
	if off > uint64(len(p.data)) || n > uint64(len(p.data))-off {
		return nil, fmt.Errorf("%s (%d bytes at 0x%x) ends beyond the file (%d bytes)", what, n, off, len(p.data))
	}
	return p.data[off : off+n : off+n], nil
}

func (p *parser) sections() error {
	shoff := le.Uint64(p.data[40:])
	entsize, num, strndx := le.Uint16(p.data[58:]), uint64(le.Uint16(p.data[60:])), uint64(le.Uint16(p.data[62:]))
	if shoff == 0 || entsize != shdrSize {
		return fmt.Errorf("no section headers, or headers of %d bytes", entsize)
	}
	first, err := p.slice(shoff, shdrSize, "the first section header")
	if err != nil {
		return err
	}
	if num == 0 { // more than fit into the header: the first section tells
		num = le.Uint64(first[32:])
	}
	if strndx == uint64(elf.SHN_XINDEX) {
		strndx = uint64(le.Uint32(first[40:]))
	}
	if num > uint64(len(p.data))/shdrSize || num == 0 {
		return fmt.Errorf("%d section headers in a file of %d bytes", num, len(p.data))
	}
	table, err := p.slice(shoff, num*shdrSize, "the section header table")
	if err != nil {
		return err
	}
	p.o.Sections = make([]*Section, num)
	for i := range p.o.Sections {
		h := table[i*shdrSize:]
		s := &Section{
			Index: i, Type: elf.SectionType(le.Uint32(h[4:])), Flags: elf.SectionFlag(le.Uint64(h[8:])),
			Offset: le.Uint64(h[24:]), Size: le.Uint64(h[32:]), Link: le.Uint32(h[40:]), Info: le.Uint32(h[44:]),
			Align: max(1, le.Uint64(h[48:])), EntSize: le.Uint64(h[56:]),
		}
		p.o.Sections[i] = s
		if i == 0 {
			s.Size, s.Type = 0, elf.SHT_NULL
			continue
		}
		if bits.OnesCount64(s.Align) != 1 {
			return fmt.Errorf("section %d has an alignment of %d", i, s.Align)
		}
		switch s.Type {
		case elf.SHT_NOBITS:
			if s.Size > 1<<47 {
				return fmt.Errorf("section %d has %d bytes", i, s.Size)
			}
		case elf.SHT_NULL:
			s.Size = 0
		default:
			if s.Data, err = p.slice(s.Offset, s.Size, fmt.Sprintf("section %d", i)); err != nil {
				return err
			}
		}
	}
	if strndx == 0 || strndx >= num {
		return fmt.Errorf("the names of the sections are in section %d of %d", strndx, num)
	}
	p.shstrtab = p.o.Sections[strndx].Data
	for i, s := range p.o.Sections[1:] {
		if s.Name, err = str(p.shstrtab, le.Uint32(table[(i+1)*shdrSize:])); err != nil {
			return fmt.Errorf("the name of section %d: %w", i+1, err)
		}
	}
	return nil
}

// str gives the NUL-terminated string at off of a string table.
func str(table []byte, off uint32) (string, error) {
	if uint64(off) >= uint64(len(table)) {
		return "", fmt.Errorf("offset %d in a string table of %d bytes", off, len(table))
	}
	n := bytes.IndexByte(table[off:], 0)
	if n < 0 {
		return "", fmt.Errorf("the string at %d does not end", off)
	}
	return string(table[off : int(off)+n]), nil
}

func (p *parser) symbols() error {
	var wide []byte // SHT_SYMTAB_SHNDX
	for _, s := range p.o.Sections {
		if s.Type != elf.SHT_SYMTAB {
			continue
		}
		if p.symtab != nil {
			return fmt.Errorf("sections %d and %d are both symbol tables", p.symtab.Index, s.Index)
		}
		p.symtab = s
	}
	if p.symtab == nil {
		return nil
	}
	for _, s := range p.o.Sections {
		if s.Type == elf.SHT_SYMTAB_SHNDX && s.Link == uint32(p.symtab.Index) {
			wide = s.Data
		}
	}
	if uint64(p.symtab.Link) >= uint64(len(p.o.Sections)) || p.o.Sections[p.symtab.Link].Type != elf.SHT_STRTAB {
		return fmt.Errorf("the names of the symbols are in section %d", p.symtab.Link)
	}
	names := p.o.Sections[p.symtab.Link].Data
	n := len(p.symtab.Data) / symSize
	if n == 0 || len(p.symtab.Data)%symSize != 0 {
		return fmt.Errorf("a symbol table of %d bytes", len(p.symtab.Data))
	}
	if wide != nil && len(wide) != 4*n {
		return fmt.Errorf("%d bytes of section indices for %d symbols", len(wide), n)
	}
	if uint64(p.symtab.Info) > uint64(n) {
		return fmt.Errorf("%d local symbols of %d", p.symtab.Info, n)
	}
	p.o.Symbols = make([]*Symbol, n)
	file := ""
	for i := range p.o.Symbols {
		b := p.symtab.Data[i*symSize:]
		y := &Symbol{
			Index: i, Bind: elf.ST_BIND(b[4]), Type: elf.ST_TYPE(b[4]), Vis: elf.ST_VISIBILITY(b[5]),
			Where: elf.SectionIndex(le.Uint16(b[6:])), Value: le.Uint64(b[8:]), Size: le.Uint64(b[16:]),
		}
		p.o.Symbols[i] = y
		if i == 0 {
			y.Where, y.Value, y.Size = elf.SHN_UNDEF, 0, 0
			continue
		}
		var err error
		if y.Name, err = str(names, le.Uint32(b)); err != nil {
			return fmt.Errorf("the name of symbol %d: %w", i, err)
		}
		if y.Type == elf.STT_FILE {
			file = y.Name
			continue
		}
		if y.Bind == elf.STB_LOCAL {
			y.File = file
		}
		if err := p.place(y, wide); err != nil {
			return fmt.Errorf("symbol %d (%.200q) %w", i, y.Name, err)
		}
	}
	for _, s := range p.o.Sections {
		slices.SortStableFunc(s.Symbols, func(a, b *Symbol) int {
			if a.Value < b.Value {
				return -1
			} else if a.Value > b.Value {
				return 1
			}
			return a.Index - b.Index
		})
		s.ends = make([]uint64, len(s.Symbols))
		end := uint64(0)
		for i, y := range s.Symbols {
			end = max(end, y.Value+y.Size)
			s.ends[i] = end
		}
	}
	return nil
}

// place connects a symbol with the section that it is defined in.
func (p *parser) place(y *Symbol, wide []byte) error {
	index := uint64(y.Where)
	switch {
	case y.Where == elf.SHN_XINDEX:
		if wide == nil {
			return fmt.Errorf("has its section index in a table that is not there")
		}
		index = uint64(le.Uint32(wide[4*y.Index:]))
		y.Where = elf.SectionIndex(index)
	case y.Where == elf.SHN_UNDEF || y.Where == elf.SHN_ABS || y.Where == elf.SHN_COMMON:
		return nil
	case y.Where >= elf.SHN_LORESERVE:
		return fmt.Errorf("has the section index 0x%x, which is not known", index)
	}
	if index == 0 || index >= uint64(len(p.o.Sections)) {
		return fmt.Errorf("is in section %d of %d", index, len(p.o.Sections))
	}
	s := p.o.Sections[index]
	if y.Type == elf.STT_SECTION {
		y.Section, y.Value = s, 0
		if s.Symbol == nil {
			s.Symbol = y
		}
		return nil
	}
	if y.Value > s.Size || y.Size > s.Size-y.Value {
		return fmt.Errorf("(%d bytes at 0x%x) ends beyond its section %s (%d bytes)", y.Size, y.Value, s.Name, s.Size)
	}
	y.Section = s
	s.Symbols = append(s.Symbols, y)
	return nil
}

func (p *parser) relocations() error {
	for _, s := range p.o.Sections {
		switch s.Type {
		case elf.SHT_REL:
			return fmt.Errorf("section %s has relocations without addends, which x86-64 does not use", s.Name)
		case elf.SHT_RELA:
		default:
			continue
		}
		if uint64(s.Info) >= uint64(len(p.o.Sections)) || s.Info == 0 {
			return fmt.Errorf("section %s applies to section %d", s.Name, s.Info)
		}
		if p.symtab == nil || s.Link != uint32(p.symtab.Index) {
			return fmt.Errorf("section %s refers to the symbols of section %d", s.Name, s.Link)
		}
		to := p.o.Sections[s.Info]
		if len(to.Relocs) != 0 {
			return fmt.Errorf("two sections of relocations for %s", to.Name)
		}
		if len(s.Data)%relaSize != 0 {
			return fmt.Errorf("section %s has %d bytes", s.Name, len(s.Data))
		}
		to.Relocs = make([]Reloc, len(s.Data)/relaSize)
		for i := range to.Relocs {
			b := s.Data[i*relaSize:]
			info := le.Uint64(b[8:])
			r := Reloc{Off: le.Uint64(b), Type: elf.R_X86_64(uint32(info)), Addend: int64(le.Uint64(b[16:]))}
			if sym := info >> 32; sym < uint64(len(p.o.Symbols)) {
				r.Sym = p.o.Symbols[sym]
			} else {
				return fmt.Errorf("relocation %d of %s is for symbol %d of %d", i, to.Name, sym, len(p.o.Symbols))
			}
			if to.Flags&elf.SHF_COMPRESSED != 0 {
				// It counts in what the section becomes; relocated checks that.
			} else if n := uint64(r.Width()); r.Off > to.Size || n > to.Size-r.Off || n != 0 && to.Data == nil {
				return fmt.Errorf("relocation %d of %s is at 0x%x of %d bytes", i, to.Name, r.Off, to.Size)
			}
			to.Relocs[i] = r
		}
		slices.SortStableFunc(to.Relocs, func(a, b Reloc) int {
			if a.Off < b.Off {
				return -1
			} else if a.Off > b.Off {
				return 1
			}
			return 0
		})
	}
	return nil
}

func (p *parser) groups() error {
	for _, s := range p.o.Sections {
		if s.Type != elf.SHT_GROUP {
			continue
		}
		if p.symtab == nil || s.Link != uint32(p.symtab.Index) || uint64(s.Info) >= uint64(len(p.o.Symbols)) {
			return fmt.Errorf("group %d has symbol %d of section %d", s.Index, s.Info, s.Link)
		}
		if len(s.Data) < 4 || len(s.Data)%4 != 0 {
			return fmt.Errorf("group %d has %d bytes", s.Index, len(s.Data))
		}
		y := p.o.Symbols[s.Info]
		g := &Group{Section: s, Signature: y.Name, COMDAT: le.Uint32(s.Data)&1 != 0}
		if y.Type == elf.STT_SECTION && y.Section != nil {
			g.Signature = y.Section.Name
		}
		for b := s.Data[4:]; len(b) > 0; b = b[4:] {
			i := uint64(le.Uint32(b))
			if i == 0 || i >= uint64(len(p.o.Sections)) || p.o.Sections[i].Group != nil {
				return fmt.Errorf("group %d has section %d, which is not there or in another group", s.Index, i)
			}
			p.o.Sections[i].Group = g
			g.Members = append(g.Members, p.o.Sections[i])
		}
		p.o.Groups = append(p.o.Groups, g)
	}
	return nil
}

func (p *parser) comment() {
	for _, s := range p.o.Sections {
		if s.Name != ".comment" || s.Flags&elf.SHF_COMPRESSED != 0 {
			continue
		}
		for c := range strings.SplitSeq(string(s.Data), "\x00") {
			if c != "" && !slices.Contains(p.o.Compiler, c) {
				p.o.Compiler = append(p.o.Compiler, c)
			}
		}
	}
}
