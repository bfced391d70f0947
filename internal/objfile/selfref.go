package objfile

import (
	"debug/elf"
	"slices"
)

// selfReferences writes out the relocations that the assembler has not: where a function
// takes its own address, `lea f(%rip), %rax` in f's section, it puts the distance into the
// code. For whoever moves or compares code that is a reference like any other, and one
// that must be seen: what is stored there outlives the call.
//
// Only the address of a function's entry is one; other distances within a section lead to
// labels, which move together with the code. Where the global offset table is found by its distance
// from such a label (psABI, 3.5, the large model), the label may stand at the entry and is not
// meant as one. A section that cannot be decoded stays as it is; its code is refused where it is
// needed.
func (p *parser) selfReferences() error {
	for _, s := range p.o.Sections {
		if s.Flags&elf.SHF_EXECINSTR == 0 || s.Data == nil || len(s.Symbols) == 0 || slices.ContainsFunc(s.Relocs, func(r Reloc) bool { return r.Type == elf.R_X86_64_GOTPC64 }) {
			continue
		}
		insts, err := s.Decode(0, uint64(len(s.Data)))
		if err != nil {
			continue
		}
		var found []Reloc
		for _, in := range insts {
			if !isLEA(in) || len(in.Refs) > 0 || in.RIPTarget >= s.Size {
				continue
			}
			if y := s.At(int64(in.RIPTarget)); y != nil && y.IsFunc() && y.Value == in.RIPTarget {
				found = append(found, Reloc{Off: in.Next() - 4, Type: elf.R_X86_64_PC32, Sym: y, Addend: -4})
			}
		}
		if len(found) > 0 {
			s.Relocs = append(slices.Clone(s.Relocs), found...)
			slices.SortStableFunc(s.Relocs, func(a, b Reloc) int { return int(int64(a.Off) - int64(b.Off)) })
		}
	}
	return nil
}

// isLEA reports whether an instruction is `lea disp32(%rip), %r64`: its displacement is
// the last of it.
func isLEA(in Inst) bool {
	return in.RIPRel && len(in.Bytes) == 7 && in.Bytes[0]&0xf8 == 0x48 && in.Bytes[1] == 0x8d && in.Bytes[2]&0xc7 == 0x05
}
