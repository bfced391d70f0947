package patchlink

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

var le = binary.LittleEndian

// object is a relocatable object that is to be written.
type object struct {
	sections []*section
	symbols  []*symbol
}

// section is one of its sections.
type section struct {
	name   string
	typ    elf.SectionType
	flags  elf.SectionFlag
	align  uint64
	size   uint64 // of a section without data (SHT_NOBITS)
	data   []byte
	relocs []reloc

	sym   *symbol // its section symbol
	index uint32
}

// symbol is a symbol; without a section it is undefined.
type symbol struct {
	name  string
	bind  elf.SymBind
	typ   elf.SymType
	vis   elf.SymVis
	sec   *section
	value uint64
	size  uint64

	index uint32
}

type reloc struct {
	off    uint64
	typ    elf.R_X86_64
	sym    *symbol
	addend int64
}

// add adds a section, and a symbol that stands for it.
func (o *object) add(s *section) *section {
	s.sym = &symbol{typ: elf.STT_SECTION, sec: s}
	o.sections = append(o.sections, s)
	o.symbols = append(o.symbols, s.sym)
	return s
}

// undefined gives the undefined symbol of a name.
func (o *object) undefined(name string, typ elf.SymType, weak bool) *symbol {
	for _, s := range o.symbols {
		if s.sec == nil && s.name == name {
			return s
		}
	}
	s := &symbol{name: name, bind: elf.STB_GLOBAL, typ: typ}
	if weak {
		s.bind = elf.STB_WEAK
	}
	o.symbols = append(o.symbols, s)
	return s
}

// strtab is a string table under construction.
type strtab struct{ bytes.Buffer }

func (t *strtab) add(s string) uint32 {
	if t.Len() == 0 {
		t.WriteByte(0)
	}
	if s == "" {
		return 0
	}
	at := t.Len()
	t.WriteString(s)
	t.WriteByte(0)
	return uint32(at)
}

const (
	ehdrSize = 64
	shdrSize = 64
	symSize  = 24
	relaSize = 24
)

// encode gives the ELF file (generic ABI, chapter 4).
func (o *object) encode() []byte {
	for i, s := range o.sections {
		s.index = uint32(i + 1)
	}
	var names, strings strtab
	names.add("")
	strings.add("")

	// Local symbols come first.
	var ordered []*symbol
	for _, local := range []bool{true, false} {
		for _, s := range o.symbols {
			if (s.bind == elf.STB_LOCAL) == local {
				ordered = append(ordered, s)
			}
		}
	}
	symtab := make([]byte, symSize)
	locals := uint32(1)
	for i, s := range ordered {
		s.index = uint32(i + 1)
		if s.bind == elf.STB_LOCAL {
			locals++
		}
		var b [symSize]byte
		le.PutUint32(b[0:], strings.add(s.name))
		b[4] = elf.ST_INFO(s.bind, s.typ)
		b[5] = byte(s.vis)
		if s.sec != nil {
			le.PutUint16(b[6:], uint16(s.sec.index))
		}
		le.PutUint64(b[8:], s.value)
		le.PutUint64(b[16:], s.size)
		symtab = append(symtab, b[:]...)
	}

	out := bytes.NewBuffer(make([]byte, ehdrSize))
	headers := make([]byte, shdrSize) // the null section
	symtabIndex := uint32(1 + len(o.sections))
	for _, s := range o.sections {
		if len(s.relocs) > 0 {
			symtabIndex++
		}
	}
	put := func(name string, typ elf.SectionType, flags elf.SectionFlag, data []byte, size, align, entsize uint64, link, info uint32) {
		align = max(align, 1)
		for uint64(out.Len())%align != 0 {
			out.WriteByte(0)
		}
		var h [shdrSize]byte
		le.PutUint32(h[0:], names.add(name))
		le.PutUint32(h[4:], uint32(typ))
		le.PutUint64(h[8:], uint64(flags))
		le.PutUint64(h[24:], uint64(out.Len()))
		le.PutUint64(h[32:], size)
		le.PutUint32(h[40:], link)
		le.PutUint32(h[44:], info)
		le.PutUint64(h[48:], align)
		le.PutUint64(h[56:], entsize)
		headers = append(headers, h[:]...)
		out.Write(data)
	}
	for _, s := range o.sections {
		size := uint64(len(s.data))
		if s.typ == elf.SHT_NOBITS {
			size = s.size
		}
		put(s.name, s.typ, s.flags, s.data, size, s.align, 0, 0, 0)
	}
	for _, s := range o.sections {
		if len(s.relocs) == 0 {
			continue
		}
		var b []byte
		for _, r := range s.relocs {
			b = le.AppendUint64(b, r.off)
			b = le.AppendUint64(b, uint64(r.sym.index)<<32|uint64(r.typ))
			b = le.AppendUint64(b, uint64(r.addend))
		}
		put(".rela"+s.name, elf.SHT_RELA, elf.SHF_INFO_LINK, b, uint64(len(b)), 8, relaSize, symtabIndex, s.index)
	}
	put(".symtab", elf.SHT_SYMTAB, 0, symtab, uint64(len(symtab)), 8, symSize, symtabIndex+1, locals)
	put(".strtab", elf.SHT_STRTAB, 0, strings.Bytes(), uint64(strings.Len()), 1, 0, 0, 0)
	names.add(".shstrtab")
	at := out.Len()
	all := names.Bytes()
	nameOff := uint32(bytes.LastIndex(all, []byte("\x00.shstrtab\x00")) + 1)
	out.Write(all)
	var h [shdrSize]byte
	le.PutUint32(h[0:], nameOff)
	le.PutUint32(h[4:], uint32(elf.SHT_STRTAB))
	le.PutUint64(h[24:], uint64(at))
	le.PutUint64(h[32:], uint64(len(all)))
	le.PutUint64(h[48:], 1)
	headers = append(headers, h[:]...)
	for out.Len()%8 != 0 {
		out.WriteByte(0)
	}
	shoff := out.Len()
	out.Write(headers)

	file := out.Bytes()
	copy(file, elf.ELFMAG)
	file[elf.EI_CLASS], file[elf.EI_DATA], file[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	le.PutUint16(file[16:], uint16(elf.ET_REL))
	le.PutUint16(file[18:], uint16(elf.EM_X86_64))
	le.PutUint32(file[20:], uint32(elf.EV_CURRENT))
	le.PutUint64(file[40:], uint64(shoff))
	le.PutUint16(file[52:], ehdrSize)
	le.PutUint16(file[58:], shdrSize)
	le.PutUint16(file[60:], uint16(len(headers)/shdrSize))
	le.PutUint16(file[62:], uint16(len(headers)/shdrSize-1))
	return file
}
