package objfile

import (
	"debug/elf"
	"sort"
)

// Width gives the number of bytes that the relocation writes: 0 for
// R_X86_64_NONE and for types that do not occur in relocatable objects (psABI,
// table 4.9), which Known tells apart.
func (r Reloc) Width() int {
	switch r.Type {
	case elf.R_X86_64_64, elf.R_X86_64_PC64, elf.R_X86_64_DTPMOD64, elf.R_X86_64_DTPOFF64, elf.R_X86_64_TPOFF64,
		elf.R_X86_64_GOT64, elf.R_X86_64_GOTPCREL64, elf.R_X86_64_GOTPC64, elf.R_X86_64_GOTPLT64, elf.R_X86_64_GOTOFF64,
		elf.R_X86_64_PLTOFF64, elf.R_X86_64_SIZE64:
		return 8
	case elf.R_X86_64_PC32, elf.R_X86_64_GOT32, elf.R_X86_64_PLT32, elf.R_X86_64_GOTPCREL, elf.R_X86_64_32, elf.R_X86_64_32S,
		elf.R_X86_64_TLSGD, elf.R_X86_64_TLSLD, elf.R_X86_64_DTPOFF32, elf.R_X86_64_GOTTPOFF, elf.R_X86_64_TPOFF32,
		elf.R_X86_64_GOTPC32, elf.R_X86_64_SIZE32, elf.R_X86_64_GOTPC32_TLSDESC, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX:
		return 4
	case elf.R_X86_64_16, elf.R_X86_64_PC16:
		return 2
	case elf.R_X86_64_8, elf.R_X86_64_PC8:
		return 1
	}
	return 0
}

// Known reports whether the type is one that can occur in a relocatable object.
// R_X86_64_TLSDESC_CALL marks a call and writes nothing.
func (r Reloc) Known() bool {
	return r.Width() != 0 || r.Type == elf.R_X86_64_NONE || r.Type == elf.R_X86_64_TLSDESC_CALL
}

// PCRel reports whether the value is relative to the place, so that in code it
// counts from the end of the instruction: S + A - P and its like for GOT and PLT.
func (r Reloc) PCRel() bool {
	switch r.Type {
	case elf.R_X86_64_PC8, elf.R_X86_64_PC16, elf.R_X86_64_PC32, elf.R_X86_64_PC64, elf.R_X86_64_PLT32, elf.R_X86_64_GOTPCREL,
		elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX, elf.R_X86_64_GOTPCREL64, elf.R_X86_64_GOTPC32, elf.R_X86_64_GOTPC64,
		elf.R_X86_64_TLSGD, elf.R_X86_64_TLSLD, elf.R_X86_64_GOTTPOFF, elf.R_X86_64_GOTPC32_TLSDESC:
		return true
	}
	return false
}

// Within gives the relocations at lo and up to hi; they alias s.Relocs.
func (s *Section) Within(lo, hi uint64) []Reloc {
	from := sort.Search(len(s.Relocs), func(i int) bool { return s.Relocs[i].Off >= lo })
	to := sort.Search(len(s.Relocs), func(i int) bool { return s.Relocs[i].Off >= hi })
	return s.Relocs[from:max(from, to):max(from, to)]
}

// Decode decodes the instructions of s from lo up to hi, with what they refer
// to. The fault is "unknown-instruction" where the decoder is not sure, where
// the last instruction goes beyond hi, and where a relocation does not lie
// wholly within one instruction. lo and hi must lie within s.Data.
func (s *Section) Decode(lo, hi uint64) ([]Inst, error) {
	var list []Inst
	relocs := s.Within(lo, hi)
	for at := lo; at < hi; {
		in, err := decodeInst(s, at, hi)
		if err != nil {
			return nil, err
		}
		for len(relocs) > 0 && relocs[0].Off < in.Next() {
			r := relocs[0]
			if r.Off+uint64(r.Width()) > in.Next() {
				return nil, unknownInst(s, at, "a relocation at 0x%x lies across its end", r.Off)
			}
			in.Refs = append(in.Refs, s.resolve(r, in.Next()))
			relocs = relocs[1:]
		}
		list = append(list, in)
		at = in.Next()
	}
	return list, nil
}

// Resolve gives what a relocation of data refers to. For code, which must be
// decoded to know, use Decode.
//
// A PC-relative value in data is the distance from the start of the table that
// it is in (jump tables of gcc and clang, clang's tables of strings): start is
// the offset of that table. A table of .gcc_except_table or .eh_frame counts from
// the place itself; there start is r.Off.
func (s *Section) Resolve(r Reloc, start uint64) Ref {
	return s.resolve(r, start)
}

// resolve resolves a relocation; a PC-relative value counts from end.
func (s *Section) resolve(r Reloc, end uint64) Ref {
	off := r.Addend
	if r.PCRel() {
		off += int64(end - r.Off)
	}
	if r.Sym.Type != elf.STT_SECTION || r.Sym.Section == nil {
		return Ref{Reloc: r, Sym: r.Sym, Off: off}
	}
	if y := r.Sym.Section.At(off); y != nil {
		return Ref{Reloc: r, Sym: y, Off: off - int64(y.Value)}
	}
	return Ref{Reloc: r, Sym: r.Sym, Off: off}
}

// At gives the symbol defined in s that covers an offset, else the one that ends
// just there, else nil. Of several it prefers functions and objects, then global
// ones, then the first one. Where all symbols of a section stand at its start, as
// with -fdata-sections, only they can be meant: then an offset outside of them
// (a table that is indexed from 1) is relative to them as well.
func (s *Section) At(off int64) *Symbol {
	if len(s.Symbols) == 0 {
		return nil
	}
	if s.Symbols[len(s.Symbols)-1].Value == 0 {
		return best(s.Symbols, func(*Symbol) int { return 1 })
	}
	if off < 0 {
		return nil
	}
	hi := sort.Search(len(s.Symbols), func(i int) bool { return s.Symbols[i].Value > uint64(off) })
	// ends[i] is the highest end of the symbols up to i: no need to look in front
	// of those that reach the offset.
	lo := sort.Search(hi, func(i int) bool { return s.ends[i] >= uint64(off) })
	return best(s.Symbols[max(lo, hi-maxOverlap, 0):hi], func(y *Symbol) int {
		switch end := y.Value + y.Size; {
		case uint64(off) < end:
			return 100
		case uint64(off) == end:
			return 10
		}
		return 0
	})
}

// maxOverlap bounds the number of symbols that At looks at: compilers do not
// nest symbols, so there are few.
const maxOverlap = 256

// best gives the first symbol of the highest rank above 0.
func best(list []*Symbol, rank func(*Symbol) int) *Symbol {
	var found *Symbol
	top := 0
	for _, y := range list {
		if r := rank(y); r > 0 && r+preference(y) > top {
			found, top = y, r+preference(y)
		}
	}
	return found
}

func preference(y *Symbol) (r int) {
	if y.Type != elf.STT_NOTYPE {
		r += 4
	}
	if y.Bind != elf.STB_LOCAL {
		r += 2
	}
	return r
}

// IsFunc reports whether y is a function, direct or indirect.
func (y *Symbol) IsFunc() bool { return y.Type == elf.STT_FUNC || y.Type == elf.STT_GNU_IFUNC }

// Defined reports whether y is defined in this object, in a section or as a
// common symbol.
func (y *Symbol) Defined() bool { return y.Section != nil || y.Where == elf.SHN_COMMON }

// String gives a name for people: that of the section for a section symbol.
func (y *Symbol) String() string {
	if y.Type == elf.STT_SECTION && y.Section != nil {
		return y.Section.Name
	}
	return y.Name
}
