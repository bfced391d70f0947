package elfsym

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// dynamic is the decoded dynamic section.
type dynamic struct {
	tags []dynEntry
	str  []byte // DT_STRTAB; nil until it is loaded
	err  error

	strAddr, strSize uint64 // DT_STRTAB
}

type dynEntry struct {
	tag elf.DynTag
	val uint64
}

// HasDynamic reports whether the file has a dynamic section, so that a dynamic
// linker can load it or has loaded it.
func (im *Image) HasDynamic() bool { return im.prog(elf.PT_DYNAMIC) != nil }

func (im *Image) dynamic() *dynamic {
	if im.dyn != nil {
		return im.dyn
	}
	d := &dynamic{}
	im.dyn = d
	p := im.prog(elf.PT_DYNAMIC)
	if p == nil {
		return d
	}
	// The loader reads the section at its address, not at its file offset.
	b, err := im.bytesAt(p.Vaddr, p.Filesz&^(dynSize-1), maxSmall)
	if err != nil {
		d.err = err
		return d
	}
	for ; len(b) >= dynSize; b = b[dynSize:] {
		e := dynEntry{elf.DynTag(int64(binary.LittleEndian.Uint64(b))), binary.LittleEndian.Uint64(b[8:])}
		if e.tag == elf.DT_NULL {
			break
		}
		d.tags = append(d.tags, e)
	}
	if addr, ok := im.dynAddr(elf.DT_STRTAB); ok {
		d.strAddr = addr
		d.strSize, _ = im.DynTag(elf.DT_STRSZ)
		var off uint64
		if off, d.err = im.tableAt(addr, d.strSize); d.err == nil {
			d.err = im.checkTable(off, d.strSize, maxTable)
		}
	}
	return d
}

// dynStrings loads the dynamic string table once.
func (im *Image) dynStrings() ([]byte, error) {
	d := im.dynamic()
	if d.str == nil && d.err == nil && d.strSize > 0 {
		d.str, d.err = im.bytesAt(d.strAddr, d.strSize, maxTable)
	}
	return d.str, d.err
}

// DynTag gives the value of the first entry of the dynamic section with this
// tag.
func (im *Image) DynTag(tag elf.DynTag) (uint64, bool) {
	for _, e := range im.dynamic().tags {
		if e.tag == tag {
			return e.val, true
		}
	}
	return 0, false
}

// dynAddr gives the value of a tag that is an address, as a link-time address.
// In memory glibc has added the load bias to some of them, other dynamic linkers
// and the vDSO have not.
func (im *Image) dynAddr(tag elf.DynTag) (uint64, bool) {
	v, ok := im.DynTag(tag)
	if ok && im.fromMemory && im.segment(v) == nil && im.segment(v-im.memBias) != nil {
		v -= im.memBias
	}
	return v, ok
}

// dynString gives a string of the dynamic string table, of which it reads no more than
// that; "" if it cannot be read.
func (im *Image) dynString(off uint64) string {
	const maxString = 4096
	d := im.dynamic()
	if d.err != nil || off >= d.strSize {
		return ""
	}
	for size := uint64(64); ; size *= 8 {
		n := min(size, maxString, d.strSize-off)
		var b []byte
		if d.str != nil {
			b = d.str[off : off+n]
		} else if b = make([]byte, n); im.ReadVaddr(b, d.strAddr+off) != nil {
			return ""
		}
		s, _, ended := bytes.Cut(b, []byte{0})
		if ended || n < size || n == maxString {
			return string(s)
		}
	}
}

// DynamicErr gives the fault of the dynamic section, if it is damaged.
func (im *Image) DynamicErr() error { return im.dynamic().err }

// Soname gives the name that the library gives itself (DT_SONAME), or "".
func (im *Image) Soname() string {
	if off, ok := im.DynTag(elf.DT_SONAME); ok {
		return im.dynString(off)
	}
	return ""
}

// IsProgram reports whether the file is started by the kernel, and is no library: of a position-independent
// one, DF_1_PIE tells, or that it names an interpreter and no soname.
func (im *Image) IsProgram() bool {
	const flags1PIE = 0x08000000 // DF_1_PIE
	v, _ := im.DynTag(elf.DT_FLAGS_1)
	return im.Type() == elf.ET_EXEC || im.Interp() != "" && im.Soname() == "" || v&flags1PIE != 0
}

// Needed lists the libraries that the file asks for (DT_NEEDED), in its order.
func (im *Image) Needed() []string {
	var list []string
	for _, e := range im.dynamic().tags {
		if e.tag == elf.DT_NEEDED {
			list = append(list, im.dynString(e.val))
		}
	}
	return list
}
