package elfsym

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"iter"
)

// Section is one section header. Loaders do not use sections, and a file need
// not have any.
type Section struct {
	Name            string
	Type            elf.SectionType
	Flags           elf.SectionFlag
	Addr, Off, Size uint64
	Link, Info      uint32
	Entsize         uint64
}

// Contains reports whether the link-time address lies in the section.
func (s Section) Contains(vaddr uint64) bool {
	return s.Flags&elf.SHF_ALLOC != 0 && s.Addr <= vaddr && vaddr-s.Addr < s.Size
}

type sectionTable struct {
	headers []byte // the raw section header table
	names   []byte
	err     error
}

// sections reads the section header table. A file without one has no sections;
// one whose table does not fit into the file is damaged.
func (im *Image) sections() *sectionTable {
	if im.secs != nil {
		return im.secs
	}
	t := &sectionTable{}
	im.secs = t
	if im.shoff == 0 || im.fromMemory && !im.inFile(im.shoff, sectionSize) {
		return t
	}
	num, strndx := im.shnum, im.shstrndx
	if num == 0 || strndx == uint32(elf.SHN_XINDEX) {
		// Extended numbering: the values are in section 0.
		var h [sectionSize]byte
		if t.err = im.read(h[:], im.shoff); t.err != nil {
			return t
		}
		if num == 0 {
			n := binary.LittleEndian.Uint64(h[32:])
			if n > maxSections {
				t.err = im.damaged("it has %d sections", n)
				return t
			}
			num = uint32(n)
		}
		if strndx == uint32(elf.SHN_XINDEX) {
			strndx = binary.LittleEndian.Uint32(h[40:])
		}
	}
	t.headers, t.err = im.bytes(im.shoff, uint64(num)*sectionSize, maxSections*sectionSize)
	if t.err != nil {
		t.headers = nil
		return t
	}
	if s, ok := t.at(strndx); ok && s.Type == elf.SHT_STRTAB && strndx != 0 {
		if t.names, t.err = im.bytes(s.Off, s.Size, maxSmall); t.err != nil {
			t.headers, t.names = nil, nil
		}
	}
	return t
}

// at gives a section header without its name.
func (t *sectionTable) at(i uint32) (Section, bool) {
	if uint64(i) >= uint64(len(t.headers)/sectionSize) {
		return Section{}, false
	}
	le, h := binary.LittleEndian, t.headers[i*sectionSize:]
	return Section{
		Type: elf.SectionType(le.Uint32(h[4:])), Flags: elf.SectionFlag(le.Uint64(h[8:])),
		Addr: le.Uint64(h[16:]), Off: le.Uint64(h[24:]), Size: le.Uint64(h[32:]),
		Link: le.Uint32(h[40:]), Info: le.Uint32(h[44:]), Entsize: le.Uint64(h[56:]),
	}, true
}

// name gives the bytes of a section's name.
func (t *sectionTable) name(i uint32) []byte {
	const maxName = 4096
	off := uint64(binary.LittleEndian.Uint32(t.headers[i*sectionSize:]))
	if off >= uint64(len(t.names)) {
		return nil
	}
	name := t.names[off:min(off+maxName, uint64(len(t.names)))]
	name, _, _ = bytes.Cut(name, []byte{0})
	return name
}

// Sections visits the section headers in the order of the file, the empty
// section 0 excepted. It visits none if the file has none; a damaged table gives
// none either, SectionsErr says so.
func (im *Image) Sections() iter.Seq2[uint32, Section] {
	return func(yield func(uint32, Section) bool) {
		t := im.sections()
		for i := uint32(1); ; i++ {
			s, ok := t.at(i)
			if !ok {
				return
			}
			s.Name = string(t.name(i))
			if !yield(i, s) {
				return
			}
		}
	}
}

// SectionsErr gives the fault of the section header table, if it is damaged.
func (im *Image) SectionsErr() error { return im.sections().err }

// Section finds a section by name.
func (im *Image) Section(name string) (Section, bool) {
	t := im.sections()
	for i := uint32(1); ; i++ {
		s, ok := t.at(i)
		if !ok {
			return Section{}, false
		}
		if string(t.name(i)) == name {
			s.Name = name
			return s, true
		}
	}
}

// sectionOfType finds the first section of a type.
func (im *Image) sectionOfType(typ elf.SectionType) (Section, bool) {
	t := im.sections()
	for i := uint32(1); ; i++ {
		s, ok := t.at(i)
		if !ok {
			return Section{}, false
		}
		if s.Type == typ {
			s.Name = string(t.name(i))
			return s, true
		}
	}
}

// sectionAt finds the section that holds a link-time address.
func (im *Image) sectionAt(vaddr uint64) (Section, bool) {
	t := im.sections()
	for i := uint32(1); ; i++ {
		s, ok := t.at(i)
		if !ok {
			return Section{}, false
		}
		// .tbss has an address but takes no place there.
		if s.Contains(vaddr) && !(s.Flags&elf.SHF_TLS != 0 && s.Type == elf.SHT_NOBITS) {
			s.Name = string(t.name(i))
			return s, true
		}
	}
}

// SectionData reads the content of a section of at most limit bytes. Compressed
// sections and those without content are refused.
func (im *Image) SectionData(s Section, limit uint64) ([]byte, error) {
	if err := im.plainContent(s, limit); err != nil {
		return nil, err
	}
	return im.bytes(s.Off, s.Size, limit)
}

// plainContent refuses a section whose bytes are not in the file as they are, or that has
// more than limit bytes.
func (im *Image) plainContent(s Section, limit uint64) error {
	if s.Type == elf.SHT_NOBITS || s.Flags&elf.SHF_COMPRESSED != 0 {
		return im.damaged("section %s has no plain content", s.Name)
	}
	return im.checkTable(s.Off, s.Size, limit)
}
