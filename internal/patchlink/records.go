package patchlink

import (
	"debug/elf"
	"encoding/hex"
	"fmt"
	"strings"

	"hotpatch/internal/patchfile"
)

// The records that are written; docs/patch-format.md describes them.
const (
	recordMagic = 0x31525048

	recordName        = 1
	recordDescription = 2
	recordCVE         = 3
	recordImage       = 11
	recordBind        = 12
	recordBindOwn     = 13
	recordReplaceCode = 14
	recordNote        = 15

	noteOverride = 1
	noteBuilder  = 2
)

const recordSection = ".hotpatch.records"

// records is a section of records under construction.
type records struct{ *section }

// newRecords adds the section to an object.
func newRecords(o *object) records {
	const retain = 0x200000 // SHF_GNU_RETAIN: --gc-sections keeps it
	return records{o.add(&section{name: recordSection, typ: elf.SHT_PROGBITS, flags: elf.SHF_ALLOC | elf.SHF_WRITE | retain, align: 8})}
}

// pointer is an address that the linker fills in.
type pointer struct {
	sym    *symbol
	addend int64
}

func (r records) add(typ, kind uint32, value uint64, p pointer, words []uint64, target pointer, text ...string) {
	at := uint64(len(r.data))
	size := 32 + 8*len(words)
	strs := ""
	if len(text) > 0 {
		strs = strings.Join(text, "\x00") + "\x00"
	}
	size = (size + len(strs) + 7) &^ 7
	b := le.AppendUint32(nil, recordMagic)
	b = le.AppendUint32(b, uint32(size))
	b = le.AppendUint32(b, typ)
	b = le.AppendUint32(b, kind)
	b = le.AppendUint64(b, value)
	b = le.AppendUint64(b, 0)
	for _, w := range words {
		b = le.AppendUint64(b, w)
	}
	b = append(b, strs...)
	b = append(b, make([]byte, size-len(b))...)
	r.data = append(r.data, b...)
	if p.sym != nil {
		r.relocs = append(r.relocs, reloc{off: at + 24, typ: elf.R_X86_64_64, sym: p.sym, addend: p.addend})
	}
	if target.sym != nil {
		r.relocs = append(r.relocs, reloc{off: at + 32, typ: elf.R_X86_64_64, sym: target.sym, addend: target.addend})
	}
}

func (r records) text(typ, kind uint32, value uint64, text ...string) {
	r.add(typ, kind, value, pointer{}, nil, pointer{}, text...)
}

func (r records) image(im *image) {
	r.text(recordImage, 0, uint64(im.number), im.buildID.String(), im.name)
}

// bind says what a place gets: an address of an image.
func (r records) bind(kind patchfile.BindKind, place pointer, im *image, vaddr uint64, addend int64, name string) {
	im.near = im.near || kind.Near() && kind.Relative()
	r.add(recordBind, uint32(kind), vaddr, place, []uint64{uint64(im.number), uint64(addend)}, pointer{}, clean(name))
}

// bindOwn says that a place gets the address of something in the library itself.
func (r records) bindOwn(kind patchfile.BindKind, place, target pointer) {
	r.add(recordBindOwn, uint32(kind), 0, place, []uint64{0}, target)
}

func (r records) replace(f pointer, im *image, vaddr, size uint64, names []string, sum [32]byte) {
	for i := range names {
		names[i] = strings.ReplaceAll(clean(names[i]), " ", "_")
	}
	r.add(recordReplaceCode, 0, vaddr, f, []uint64{uint64(im.number), size}, pointer{}, strings.Join(names, " "), hex.EncodeToString(sum[:]))
}

// clean makes a name printable: names come from objects, which may hold anything.
func clean(name string) string {
	const most = 4096
	if len(name) > most {
		name = name[:most]
	}
	if strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c > '~' }) {
		return strings.Trim(fmt.Sprintf("%+q", name), `"`)
	}
	return name
}
