package inject

import (
	"cmp"
	"debug/elf"
	"fmt"

	"hotpatch/elfsym"
)

// A dynamic loader maps a library where its first segment's address says, if
// there is room: glibc from 2.36 (before, only in programs that are not
// position-independent) and musl take it for the hint of their first mmap. So a
// library comes to lie at a given place if its copy is moved there first, as
// prelink(8) did it: everything in it that is a link-time address grows by the
// same number. Code and unwind tables are relative to their own place and stay.

// Dynamic tags that debug/elf does not know.
const (
	dtRELRSZ       elf.DynTag = 35
	dtRELR         elf.DynTag = 36
	dtTLSDescPLT   elf.DynTag = 0x6ffffef6
	dtTLSDescGOT   elf.DynTag = 0x6ffffef7
	dynEntry                  = 16
	relaEntry                 = 24
	symEntry                  = 24
	progHeader                = 56
	sectHeader                = 64
	sectAddrOffset            = 16
)

// addressTags are the dynamic tags whose value is a link-time address (generic
// ABI, chapter 5, "Dynamic Section"; the ones from 0x6ffffef5 up are GNU's).
var addressTags = map[elf.DynTag]bool{
	elf.DT_PLTGOT: true, elf.DT_HASH: true, elf.DT_STRTAB: true, elf.DT_SYMTAB: true, elf.DT_RELA: true,
	elf.DT_INIT: true, elf.DT_FINI: true, elf.DT_REL: true, elf.DT_JMPREL: true, elf.DT_INIT_ARRAY: true,
	elf.DT_FINI_ARRAY: true, elf.DT_PREINIT_ARRAY: true, elf.DT_SYMTAB_SHNDX: true, dtRELR: true,
	elf.DT_GNU_HASH: true, dtTLSDescPLT: true, dtTLSDescGOT: true,
	elf.DT_VERSYM: true, elf.DT_VERDEF: true, elf.DT_VERNEED: true,
}

// rebaser moves a library's file by a number of bytes.
type rebaser struct {
	im   *elfsym.Image
	data []byte
	by   uint64
}

// rebase adds by, a multiple of every segment's alignment, to all link-time
// addresses in data, the file of im. It fails for relocations of types that are
// not known here; data is not to be used then.
func rebase(im *elfsym.Image, data []byte, by uint64) error {
	r := &rebaser{im: im, data: data, by: by}
	for _, step := range []func() error{r.relocations, r.relativeWords, r.globalOffsetTable, r.symbols, r.dynamic, r.headers} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func cannotMove(format string, args ...any) error {
	return fmt.Errorf("move the patch library: "+format, args...)
}

// at gives the n bytes of the file that are mapped at a link-time address.
func (r *rebaser) at(vaddr, n uint64) ([]byte, error) {
	for _, s := range r.im.Segments() {
		if s.Type != elf.PT_LOAD || vaddr < s.Vaddr || vaddr-s.Vaddr >= s.Filesz || s.Filesz-(vaddr-s.Vaddr) < n {
			continue
		}
		if off := s.Off + (vaddr - s.Vaddr); off <= uint64(len(r.data)) && n <= uint64(len(r.data))-off {
			return r.data[off : off+n], nil
		}
	}
	return nil, cannotMove("the %d bytes at %#x are not in its file", n, vaddr)
}

// grow adds to the word at the beginning of b.
func (r *rebaser) grow(b []byte) { le.PutUint64(b, le.Uint64(b)+r.by) }

// relocations moves the places of the dynamic relocations, and the addends of
// those that are a link-time address. The tables are those that the loader uses;
// elfsym has checked where they are.
func (r *rebaser) relocations() error {
	for _, table := range [][2]elf.DynTag{{elf.DT_RELA, elf.DT_RELASZ}, {elf.DT_JMPREL, elf.DT_PLTRELSZ}} {
		addr, ok := r.im.DynTag(table[0])
		size, _ := r.im.DynTag(table[1])
		if !ok || size == 0 {
			continue
		}
		if table[0] == elf.DT_JMPREL {
			// Some linkers count these relocations in DT_RELASZ too.
			rela, _ := r.im.DynTag(elf.DT_RELA)
			relasz, _ := r.im.DynTag(elf.DT_RELASZ)
			if addr >= rela && addr < rela+relasz {
				seen := min(rela+relasz-addr, size)
				addr, size = addr+seen, size-seen
			}
		}
		b, err := r.at(addr, size)
		if err != nil {
			return err
		}
		for ; len(b) >= relaEntry; b = b[relaEntry:] {
			if err := r.relocation(b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rebaser) relocation(b []byte) error {
	place, info := le.Uint64(b), le.Uint64(b[8:])
	typ, sym := elf.R_X86_64(info&0xffffffff), info>>32
	switch typ {
	case elf.R_X86_64_NONE:
		return nil
	case elf.R_X86_64_RELATIVE, elf.R_X86_64_IRELATIVE:
		r.grow(b[16:])
	case elf.R_X86_64_JMP_SLOT:
		// The word leads back into the PLT, for lazy binding.
		word, err := r.at(place, 8)
		if err != nil {
			return err
		}
		if le.Uint64(word) != 0 {
			r.grow(word)
		}
	case elf.R_X86_64_64:
		if sym == 0 {
			return cannotMove("the relocation at %#x has no symbol", place)
		}
	case elf.R_X86_64_GLOB_DAT, elf.R_X86_64_DTPMOD64, elf.R_X86_64_DTPOFF64, elf.R_X86_64_TPOFF64, elf.R_X86_64_TLSDESC:
	default:
		return cannotMove("the relocation at %#x is of type %v", place, typ)
	}
	r.grow(b)
	return nil
}

// relativeWords moves the table of packed relative relocations and the words
// that it names: each entry is an address, or a bitmap if its lowest bit is set.
func (r *rebaser) relativeWords() error {
	addr, ok := r.im.DynTag(dtRELR)
	size, _ := r.im.DynTag(dtRELRSZ)
	if !ok || size == 0 {
		return nil
	}
	var bad error
	err := r.im.RelativeWords(func(vaddr uint64) bool {
		word, err := r.at(vaddr, 8)
		if err != nil {
			bad = err
			return false
		}
		r.grow(word)
		return true
	})
	if err != nil || bad != nil {
		return cmp.Or(bad, err)
	}
	b, err := r.at(addr, size)
	if err != nil {
		return err
	}
	for ; len(b) >= 8; b = b[8:] {
		if b[0]&1 == 0 {
			r.grow(b)
		}
	}
	return nil
}

// globalOffsetTable moves its first word, which holds the address of the dynamic
// section (x86-64 psABI, 5.2).
func (r *rebaser) globalOffsetTable() error {
	got, ok := r.im.DynTag(elf.DT_PLTGOT)
	if !ok {
		return nil
	}
	for _, s := range r.im.Segments() {
		if s.Type != elf.PT_DYNAMIC {
			continue
		}
		if word, err := r.at(got, 8); err == nil && le.Uint64(word) == s.Vaddr {
			r.grow(word)
		}
	}
	return nil
}

// symbols moves the values of the symbols that are addresses, in both tables.
func (r *rebaser) symbols() error {
	dynsym, _ := r.im.DynTag(elf.DT_SYMTAB)
	found := false
	for _, s := range r.im.Sections() {
		if s.Type != elf.SHT_DYNSYM && s.Type != elf.SHT_SYMTAB {
			continue
		}
		found = found || s.Type == elf.SHT_DYNSYM && s.Addr == dynsym
		if s.Off > uint64(len(r.data)) || s.Size > uint64(len(r.data))-s.Off {
			return cannotMove("its symbol table is not within the file")
		}
		for b := r.data[s.Off : s.Off+s.Size]; len(b) >= symEntry; b = b[symEntry:] {
			shndx := elf.SectionIndex(le.Uint16(b[6:]))
			if shndx == elf.SHN_UNDEF || shndx == elf.SHN_ABS || shndx == elf.SHN_COMMON || elf.ST_TYPE(b[4]) == elf.STT_TLS {
				continue
			}
			r.grow(b[8:])
		}
	}
	if !found {
		return cannotMove("its symbol table at %#x has no section header", dynsym)
	}
	return nil
}

// dynamic moves the addresses in the dynamic section.
func (r *rebaser) dynamic() error {
	for _, s := range r.im.Segments() {
		if s.Type != elf.PT_DYNAMIC {
			continue
		}
		dyn, err := r.at(s.Vaddr, s.Filesz)
		if err != nil {
			return err
		}
		for ; len(dyn) >= dynEntry; dyn = dyn[dynEntry:] {
			tag := elf.DynTag(le.Uint64(dyn))
			if tag == elf.DT_NULL {
				break
			}
			if addressTags[tag] {
				r.grow(dyn[8:])
			}
		}
	}
	return nil
}

// headers moves the segments and the sections that are mapped.
func (r *rebaser) headers() error {
	size := uint64(len(r.data))
	phoff, phnum := le.Uint64(r.data[32:]), uint64(le.Uint16(r.data[56:]))
	shoff, shnum := le.Uint64(r.data[40:]), uint64(le.Uint16(r.data[60:]))
	if phoff > size || phnum*progHeader > size-phoff || shoff > size || shnum*sectHeader > size-shoff {
		return cannotMove("its headers are not within the file")
	}
	for b := r.data[phoff : phoff+phnum*progHeader]; len(b) > 0; b = b[progHeader:] {
		if elf.ProgType(le.Uint32(b)) != elf.PT_GNU_STACK {
			r.grow(b[16:]) // p_vaddr
			r.grow(b[24:]) // p_paddr
		}
	}
	for b := r.data[shoff : shoff+shnum*sectHeader]; len(b) > 0; b = b[sectHeader:] {
		if elf.SectionFlag(le.Uint64(b[8:]))&elf.SHF_ALLOC != 0 {
			r.grow(b[sectAddrOffset:])
		}
	}
	if le.Uint64(r.data[24:]) != 0 {
		r.grow(r.data[24:]) // e_entry
	}
	return nil
}

// span gives the range of link-time addresses that a library's segments take,
// from page to page, and the alignment that they need.
func span(im *elfsym.Image) (lo, hi, align uint64) {
	lo, align = ^uint64(0), 0x1000
	for _, s := range im.Segments() {
		if s.Type != elf.PT_LOAD {
			continue
		}
		lo, hi = min(lo, s.Vaddr&^0xfff), max(hi, (s.Vaddr+s.Memsz+0xfff)&^0xfff)
		if s.Align&(s.Align-1) == 0 {
			align = max(align, s.Align)
		}
	}
	return lo, hi, align
}
