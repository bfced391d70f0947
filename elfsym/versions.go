package elfsym

import (
	"debug/elf"
	"encoding/binary"
)

// versions is the symbol versioning information of .dynsym (LSB, "Symbol
// Versioning"): an index for every symbol, and a name for every index.
type versions struct {
	index []byte // DT_VERSYM: 16 bits per symbol; nil until the table is loaded
	names map[uint16][]byte
}

// The special version indexes, and the bit for versions that are not the
// default.
const (
	verGlobal = 1
	verHidden = 0x8000
)

// of gives the version of symbol i.
func (v *versions) of(i uint32) (name []byte, hidden bool) {
	if uint64(i)*2+2 > uint64(len(v.index)) {
		return nil, false
	}
	return v.named(binary.LittleEndian.Uint16(v.index[i*2:]))
}

// named gives the version of a symbol that has this index in DT_VERSYM.
func (v *versions) named(x uint16) (name []byte, hidden bool) {
	return v.names[x&^verHidden], x&verHidden != 0
}

// symbolVersion gives the version of one symbol. Versions only describe: what is wrong
// with them leaves symbols unversioned.
func (im *Image) symbolVersion(i uint32) (name []byte, hidden bool) {
	addr, ok := im.dynAddr(elf.DT_VERSYM)
	if !ok {
		return nil, false
	}
	b, err := im.few(addr+2*uint64(i), 2)
	if err != nil {
		return nil, false
	}
	return im.versionNames().named(binary.LittleEndian.Uint16(b))
}

// symbolVersions loads the version tables once.
func (im *Image) symbolVersions() *versions {
	v := im.versionNames()
	if addr, ok := im.dynAddr(elf.DT_VERSYM); ok && v.index == nil {
		n := uint64(len(im.table(Dynsym).syms) / symSize)
		v.index, _ = im.bytesAt(addr, n*2, maxTable)
	}
	return v
}

// versionNames loads the names of the versions once.
func (im *Image) versionNames() *versions {
	if im.versions != nil {
		return im.versions
	}
	v := &versions{names: map[uint16][]byte{}}
	im.versions = v
	le := binary.LittleEndian
	// Elf64_Verdef: version, flags, ndx, cnt u16; hash, aux, next u32.
	// Elf64_Verdaux: name, next u32.
	im.chain(elf.DT_VERDEF, elf.DT_VERDEFNUM, 20, 16, func(at uint64, e []byte) {
		var aux [8]byte
		if im.ReadVaddr(aux[:], at+uint64(le.Uint32(e[12:]))) == nil {
			v.name(le.Uint16(e[4:]), im.dynString(uint64(le.Uint32(aux[:]))))
		}
	})
	// Elf64_Verneed: version, cnt u16; file, aux, next u32.
	// Elf64_Vernaux: hash u32; flags, other u16; name, next u32.
	im.chain(elf.DT_VERNEED, elf.DT_VERNEEDNUM, 16, 12, func(at uint64, e []byte) {
		at += uint64(le.Uint32(e[8:]))
		var aux [16]byte
		for n := le.Uint16(e[2:]); n > 0 && im.ReadVaddr(aux[:], at) == nil; n-- {
			v.name(le.Uint16(aux[6:]), im.dynString(uint64(le.Uint32(aux[8:]))))
			next := le.Uint32(aux[12:])
			if next == 0 {
				break
			}
			at += uint64(next)
		}
	})
	return v
}

func (v *versions) name(index uint16, name string) {
	index &^= verHidden
	// A definition with index 1 names the library itself.
	if index > verGlobal && v.names[index] == nil {
		v.names[index] = []byte(name)
	}
}

// chain visits the entries of size bytes of a list in which each names the
// distance to the next at offset next.
func (im *Image) chain(addrTag, numTag elf.DynTag, size, next int, visit func(at uint64, entry []byte)) {
	at, ok := im.dynAddr(addrTag)
	num, _ := im.DynTag(numTag)
	if !ok {
		return
	}
	e := make([]byte, size)
	for n := min(num, 0x8000); n > 0 && im.ReadVaddr(e, at) == nil; n-- {
		visit(at, e)
		step := binary.LittleEndian.Uint32(e[next:])
		if step == 0 {
			return
		}
		at += uint64(step)
	}
}
