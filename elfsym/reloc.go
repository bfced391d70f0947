package elfsym

import (
	"debug/elf"
	"encoding/binary"
)

// Reloc is one dynamic relocation (Elf64_Rela; types: x86-64 psABI, 4.4).
type Reloc struct {
	Off    uint64 // link-time address of the place
	Type   elf.R_X86_64
	Sym    uint32 // index into .dynsym; 0: none
	Addend int64
}

// The tags of packed relative relocations, which debug/elf does not know.
const (
	dtRELRSZ  elf.DynTag = 35
	dtRELR    elf.DynTag = 36
	dtRELRENT elf.DynTag = 37
)

// Relocs visits the dynamic relocations, DT_RELA first, then DT_JMPREL, until
// visit returns false. The places of packed relative relocations are visited by
// RelativeWords. A table that does not fit is fault "damaged-elf".
func (im *Image) Relocs(visit func(Reloc) bool) error {
	if err := im.DynamicErr(); err != nil {
		return err
	}
	rela, relasz, err := im.relaTable(elf.DT_RELA, elf.DT_RELASZ)
	if err != nil {
		return err
	}
	jmp, jmpsz, err := im.relaTable(elf.DT_JMPREL, elf.DT_PLTRELSZ)
	if err != nil {
		return err
	}
	if jmpsz > 0 {
		if kind, ok := im.DynTag(elf.DT_PLTREL); ok && elf.DynTag(kind) != elf.DT_RELA {
			return im.damaged("its PLT relocations are of kind %d and not RELA", kind)
		}
	}
	if more, err := im.relas(rela, relasz, visit); err != nil || !more {
		return err
	}
	// Some linkers count the PLT's relocations in DT_RELASZ too.
	if jmp >= rela && jmp < rela+relasz {
		seen := min(rela+relasz-jmp, jmpsz)
		jmp, jmpsz = jmp+seen, jmpsz-seen
	}
	_, err = im.relas(jmp, jmpsz, visit)
	return err
}

func (im *Image) relaTable(addrTag, sizeTag elf.DynTag) (addr, size uint64, err error) {
	addr, ok := im.dynAddr(addrTag)
	if !ok {
		return 0, 0, nil
	}
	size, _ = im.DynTag(sizeTag)
	if ent, ok := im.DynTag(elf.DT_RELAENT); ok && ent != relaSize {
		return 0, 0, im.damaged("its relocations have %d bytes and not %d", ent, relaSize)
	}
	if size%relaSize != 0 || size > maxTable {
		return 0, 0, im.damaged("its relocation table at %#x has %d bytes", addr, size)
	}
	return addr, size, nil
}

// relas visits the entries of one table, reading it piece by piece.
func (im *Image) relas(addr, size uint64, visit func(Reloc) bool) (more bool, err error) {
	if size == 0 {
		return true, nil
	}
	le := binary.LittleEndian
	buf := make([]byte, min(size, 2048*relaSize))
	for ; size > 0; addr, size = addr+uint64(len(buf)), size-uint64(len(buf)) {
		buf = buf[:min(size, uint64(len(buf)))]
		if err := im.ReadVaddr(buf, addr); err != nil {
			return false, im.damaged("its relocation table at %#x is not in a segment", addr)
		}
		for b := buf; len(b) > 0; b = b[relaSize:] {
			info := le.Uint64(b[8:])
			r := Reloc{
				Off: le.Uint64(b), Type: elf.R_X86_64(info & 0xffffffff), Sym: uint32(info >> 32),
				Addend: int64(le.Uint64(b[16:])),
			}
			if !visit(r) {
				return false, nil
			}
		}
	}
	return true, nil
}

// RelativeWords visits the link-time addresses of the words that DT_RELR names
// ("packed" relative relocations; generic ABI, "Relative Relocation Table"),
// until visit returns false. To each of these 8-byte words the loader adds the
// load bias; the addend is the word itself.
func (im *Image) RelativeWords(visit func(vaddr uint64) bool) error {
	if err := im.DynamicErr(); err != nil {
		return err
	}
	addr, ok := im.dynAddr(dtRELR)
	if !ok {
		return nil
	}
	size, _ := im.DynTag(dtRELRSZ)
	if ent, ok := im.DynTag(dtRELRENT); ok && ent != 8 || size%8 != 0 {
		return im.damaged("its packed relocations have %d bytes, in entries of %d", size, ent)
	}
	table, err := im.bytesAt(addr, size, maxTable)
	if err != nil {
		return err
	}
	var where uint64 // the word that the next bitmap begins with
	first := true
	for ; len(table) > 0; table = table[8:] {
		e := binary.LittleEndian.Uint64(table)
		if e&1 == 0 {
			if !visit(e) {
				return nil
			}
			where, first = e+8, false
			continue
		}
		if first {
			return im.damaged("its packed relocations begin with a bitmap")
		}
		for bits, at := e>>1, where; bits != 0; bits, at = bits>>1, at+8 {
			if bits&1 != 0 && !visit(at) {
				return nil
			}
		}
		where += 63 * 8
	}
	return nil
}
