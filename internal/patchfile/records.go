package patchfile

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
)

// The format of the records; docs/patch-format.md describes it byte by byte.
const (
	recordSection = ".hotpatch.records"
	sectionPrefix = ".hotpatch."

	recordMagic  = 0x31525048 // "HPR1"
	recordHeader = 32
	maxRecords   = 16 << 20 // bytes in the section

	// optional is the bit of a record's type that lets a reader which does not
	// know the type skip the record.
	optional = 1 << 31
)

// The types of records.
const (
	typeName        = 1
	typeDescription = 2
	typeCVE         = 3
	typeReplace     = 4
	typeReplaceAt   = 5
	typeBase        = 6
	typeRef         = 7
	typeHook        = 8
	typeConsistency = 9
	typeKeep        = 10
	typeImage       = 11
	typeBind        = 12
	typeBindOwn     = 13
	typeReplaceCode = 14
	typeNote        = 15
)

// shape says which fields a type of record uses; the others must be zero.
type shape struct {
	kinds   uint32 // kinds are 0 to kinds
	value   bool
	pointer bool
	words   int  // further words after the header
	target  bool // the first of them is a pointer
	strings int
}

var shapes = map[uint32]shape{
	typeName:        {value: true, strings: 1},
	typeDescription: {strings: 1},
	typeCVE:         {strings: 1},
	typeReplace:     {pointer: true, strings: 1},
	typeReplaceAt:   {value: true, pointer: true, strings: 1},
	typeBase:        {strings: 2},
	typeRef:         {kinds: 2, pointer: true, strings: 1},
	typeHook:        {kinds: 4, pointer: true},
	typeConsistency: {kinds: 2},
	typeKeep:        {pointer: true},
	typeImage:       {value: true, strings: 2},
	typeBind:        {kinds: 5, value: true, pointer: true, words: 2, strings: 1},
	typeBindOwn:     {kinds: 5, pointer: true, words: 1, target: true},
	typeReplaceCode: {value: true, pointer: true, words: 2, strings: 2},
	typeNote:        {kinds: 2, strings: 1},
}

// record is one decoded record.
type record struct {
	offset  uint64 // in the section
	kind    uint32
	value   uint64
	pointer uint64 // link-time address
	words   []uint64
	text    []string
}

// pointer is what a relocation makes of a word in the section.
type pointer struct {
	addr uint64
	bad  string // why it is no usable address, or ""
}

func (p *Patch) badRecord(offset uint64, format string, args ...any) *fault.Error {
	e := refuse(p.Path, "patch-bad-record", format, args...)
	e.Where += fmt.Sprintf(", section %s+%#x", recordSection, offset)
	e.Hint = "build the patch again; its records are damaged or made by something else than hotpatch.h and hotpatch build"
	return e
}

// readRecords decodes the section of records, if there is one.
func (p *Patch) readRecords() error {
	sec, found := elfsym.Section{}, false
	for _, s := range p.Image.Sections() {
		switch {
		case !strings.HasPrefix(s.Name, sectionPrefix):
		case s.Name != recordSection:
			return hint(refuse(p.Path, "patch-bad-record", "it has a section %.40q, which this version does not know", s.Name),
				"use a newer version of hotpatch")
		case found:
			return p.badRecord(0, "there are two sections of this name")
		default:
			sec, found = s, true
		}
	}
	if !found {
		return nil
	}
	p.seen = make(map[string]bool)
	defer func() { p.seen = nil }()
	if sec.Type != elf.SHT_PROGBITS || sec.Flags&elf.SHF_ALLOC == 0 || sec.Addr%8 != 0 || sec.Size > maxRecords {
		return p.badRecord(0, "the section is of type %v, with flags %v, at %#x, with %d bytes", sec.Type, sec.Flags, sec.Addr, sec.Size)
	}
	p.HasRecords = true
	data := make([]byte, sec.Size)
	if len(data) > 0 {
		if err := p.Image.ReadVaddr(data, sec.Addr); err != nil {
			return damaged(p.Path, err)
		}
	}
	pointers, err := p.pointers(sec, data)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	for off := uint64(0); off < sec.Size; {
		b := data[off:]
		// The linker and sanitizers may leave zeros between records.
		if pad := b[:min(8, len(b))]; len(bytes.Trim(pad, "\x00")) == 0 {
			if _, reloc := pointers[off]; reloc {
				return p.badRecord(off, "there is a relocation between records")
			}
			off += uint64(len(pad))
			continue
		}
		if len(b) < recordHeader {
			return p.badRecord(off, "only %d bytes are left for a record", len(b))
		}
		if m := le.Uint32(b); m != recordMagic {
			return p.badRecord(off, "a record begins with %#08x instead of %#08x", m, recordMagic)
		}
		size := uint64(le.Uint32(b[4:]))
		if size < recordHeader || size%8 != 0 || size > uint64(len(b)) {
			return p.badRecord(off, "a record says that it has %d bytes, and %d are left", size, len(b))
		}
		if err := p.readRecord(off, b[:size], pointers); err != nil {
			return err
		}
		off += size
	}
	return p.checkBinds()
}

// pointers gives what the dynamic linker will store into the words of the
// section, by their offsets, less the load bias (x86-64 psABI, 4.4.1).
func (p *Patch) pointers(sec elfsym.Section, data []byte) (map[uint64]pointer, error) {
	found := make(map[uint64]pointer)
	var bad error
	err := p.Image.Relocs(func(r elfsym.Reloc) bool {
		off := r.Off - sec.Addr
		if off >= sec.Size && (r.Off >= sec.Addr || sec.Addr-r.Off >= 8) {
			return true
		}
		if _, twice := found[off]; twice || off%8 != 0 || off >= sec.Size || sec.Size-off < 8 {
			bad = p.badRecord(off, "a relocation is misplaced")
			return false
		}
		switch r.Type {
		case elf.R_X86_64_RELATIVE:
			found[off] = pointer{addr: uint64(r.Addend)}
		case elf.R_X86_64_64:
			s, err := p.Image.DynSym(r.Sym)
			switch {
			case err != nil:
				bad = damaged(p.Path, err)
				return false
			case !s.Defined():
				found[off] = pointer{bad: fmt.Sprintf("%.100q is not defined in this library", s.Name)}
			case s.Type == elf.STT_GNU_IFUNC:
				found[off] = pointer{bad: fmt.Sprintf("%.100q is an indirect function (IFUNC)", s.Name)}
			default:
				found[off] = pointer{addr: s.Value + uint64(r.Addend)}
			}
		case elf.R_X86_64_IRELATIVE:
			found[off] = pointer{bad: "it is an indirect function (IFUNC)"}
		default:
			bad = p.badRecord(off, "a relocation is of type %v", r.Type)
			return false
		}
		return true
	})
	if bad != nil {
		return nil, bad
	}
	if err != nil {
		return nil, damaged(p.Path, err)
	}
	err = p.Image.RelativeWords(func(vaddr uint64) bool {
		off := vaddr - sec.Addr
		if off >= sec.Size && (vaddr >= sec.Addr || sec.Addr-vaddr >= 8) {
			return true
		}
		if _, twice := found[off]; twice || off%8 != 0 || off >= sec.Size || sec.Size-off < 8 {
			bad = p.badRecord(off, "a relocation is misplaced")
			return false
		}
		found[off] = pointer{addr: binary.LittleEndian.Uint64(data[off:])}
		return true
	})
	if bad != nil {
		return nil, bad
	}
	if err != nil {
		return nil, damaged(p.Path, err)
	}
	return found, nil
}

// readRecord decodes one record, b, and takes in what it says.
func (p *Patch) readRecord(off uint64, b []byte, pointers map[uint64]pointer) error {
	le := binary.LittleEndian
	typ := le.Uint32(b[8:])
	sh, known := shapes[typ]
	if !known {
		if typ&optional != 0 {
			return nil
		}
		return hint(p.badRecord(off, "a record is of type %d, which this version does not know", typ),
			"use a newer version of hotpatch")
	}
	r := record{offset: off, kind: le.Uint32(b[12:]), value: le.Uint64(b[16:])}
	if r.kind > sh.kinds {
		return p.badRecord(off, "a record of type %d is of kind %d", typ, r.kind)
	}
	if !sh.value && r.value != 0 {
		return p.badRecord(off, "a record of type %d has the value %d", typ, r.value)
	}
	const pointerAt, targetAt = 24, recordHeader
	for word := uint64(0); word < uint64(len(b)); word += 8 {
		if _, reloc := pointers[off+word]; reloc != (sh.pointer && word == pointerAt || sh.target && word == targetAt) {
			return p.badRecord(off+word, "a record of type %d has, or lacks, a relocation here", typ)
		}
	}
	if sh.pointer {
		ptr := pointers[off+pointerAt]
		if ptr.bad != "" {
			return p.badReplacement(off, "%s", ptr.bad)
		}
		r.pointer = ptr.addr
	} else if le.Uint64(b[pointerAt:]) != 0 {
		return p.badRecord(off, "a record of type %d has a pointer", typ)
	}
	rest := b[recordHeader:]
	if len(rest) < 8*sh.words {
		return p.badRecord(off, "a record of type %d has %d bytes", typ, len(b))
	}
	for i := range sh.words {
		word := le.Uint64(rest[8*i:])
		if sh.target && i == 0 {
			ptr := pointers[off+targetAt]
			if ptr.bad != "" {
				return p.badRecord(off, "%s", ptr.bad)
			}
			word = ptr.addr
		}
		r.words = append(r.words, word)
	}
	rest = rest[8*sh.words:]
	for range sh.strings {
		s, after, ok := bytes.Cut(rest, []byte{0})
		if !ok {
			return p.badRecord(off, "a string in a record of type %d does not end", typ)
		}
		r.text, rest = append(r.text, string(s)), after
	}
	if len(bytes.Trim(rest, "\x00")) != 0 {
		return p.badRecord(off, "there are bytes after the text of a record of type %d", typ)
	}
	return p.take(typ, r)
}

// take stores what a record says.
func (p *Patch) take(typ uint32, r record) error {
	switch typ {
	case typeName:
		if why := badName(r.text[0]); why != "" {
			return p.badRecord(r.offset, "the patch's name %s", why)
		}
		if r.value == 0 || r.value > 1<<62 {
			return p.badRecord(r.offset, "the patch's version is %d and must be from 1 up", int64(r.value))
		}
		if p.Name != "" && (p.Name != r.text[0] || p.Version != r.value) {
			return p.badRecord(r.offset, "it is named %q version %d, and %q version %d", p.Name, p.Version, r.text[0], r.value)
		}
		p.Name, p.Version = r.text[0], r.value
	case typeDescription:
		if !printable(r.text[0], maxText) {
			return p.badRecord(r.offset, "the description is longer than %d bytes or cannot be printed", maxText)
		}
		if p.Description != "" && p.Description != r.text[0] {
			return p.badRecord(r.offset, "there are two descriptions")
		}
		p.Description = r.text[0]
	case typeCVE:
		if r.text[0] == "" || !printable(r.text[0], maxID) {
			return p.badRecord(r.offset, "a CVE identifier is empty, longer than %d bytes or cannot be printed", maxID)
		}
		if key := "id " + r.text[0]; !p.seen[key] {
			p.CVEs, p.seen[key] = append(p.CVEs, r.text[0]), true
		}
	case typeReplace, typeReplaceAt:
		return p.takeReplacement(typ, r)
	case typeBase:
		id, err := p.buildID(r.offset, r.text[0])
		if err != nil {
			return err
		}
		if !printable(r.text[1], maxSymbol) {
			return p.badRecord(r.offset, "a module's name cannot be printed")
		}
		p.Bases = append(p.Bases, Base{Module: r.text[1], BuildID: id})
	case typeRef:
		return p.takeRef(r)
	case typeHook:
		return p.takeHook(r)
	case typeConsistency:
		want := map[uint32]Consistency{1: StackConsistency, 2: EntryConsistency}[r.kind]
		if want == "" || p.Consistency != "" && p.Consistency != want {
			return p.badRecord(r.offset, "the consistency asked for is contradictory or of unknown kind %d", r.kind)
		}
		p.Consistency = want
	case typeKeep:
		if err := p.checkCode(r, "a function to keep"); err != nil {
			return err
		}
		p.Kept = append(p.Kept, Function{Addr: r.pointer})
	case typeImage:
		return p.takeImage(r)
	case typeBind, typeBindOwn:
		return p.takeBind(typ, r)
	case typeReplaceCode:
		return p.takeReplaceCode(r)
	case typeNote:
		return p.takeNote(r)
	}
	return nil
}

func (p *Patch) takeReplacement(typ uint32, r record) error {
	if err := p.checkCode(r, "a new function"); err != nil {
		return err
	}
	re := Replacement{New: Function{Addr: r.pointer}}
	if typ == typeReplaceAt {
		id, err := p.buildID(r.offset, r.text[0])
		if err != nil {
			return err
		}
		if re.OldBuildID, re.OldAddr = id, r.value; r.value == 0 {
			return p.badRecord(r.offset, "a function to replace is at address 0")
		}
	} else if re.Old = r.text[0]; re.Old == "" || !printable(re.Old, maxSymbol) {
		return p.badRecord(r.offset, "the name of a function to replace is empty, too long or cannot be printed")
	}
	key := oldKey(&re)
	if p.seen[key] {
		return p.badReplacement(r.offset, "two records replace the same function, %.200s", key)
	}
	p.seen[key] = true
	p.Replacements = append(p.Replacements, re)
	return nil
}

// oldKey names what a record replaces.
func oldKey(re *Replacement) string {
	return fmt.Sprintf("%s in %s at %#x", re.Old, re.OldBuildID, re.OldAddr)
}

func (p *Patch) takeRef(r record) error {
	ref := Ref{Slot: r.pointer, Query: r.text[0], Kind: RefKind(r.kind)}
	if ref.Query == "" || !printable(ref.Query, maxSymbol) {
		return p.badRecord(r.offset, "the name of a symbol referred to is empty, too long or cannot be printed")
	}
	writable := slices.ContainsFunc(p.Image.Segments(), func(s elf.ProgHeader) bool {
		return s.Type == elf.PT_LOAD && s.Flags&elf.PF_W != 0 && s.Vaddr <= ref.Slot && ref.Slot-s.Vaddr < s.Memsz && s.Memsz-(ref.Slot-s.Vaddr) >= 8
	})
	if !writable || ref.Slot%8 != 0 {
		return p.badRecord(r.offset, "the pointer for %.100q at %#x is not an aligned word of writable memory", ref.Query, ref.Slot)
	}
	key := fmt.Sprintf("slot %#x", ref.Slot)
	if p.seen[key] {
		return p.badRecord(r.offset, "two records fill the pointer at %#x, this one for %.100q", ref.Slot, ref.Query)
	}
	p.seen[key] = true
	p.Refs = append(p.Refs, ref)
	return nil
}

func (p *Patch) takeHook(r record) error {
	if err := p.checkCode(r, "a hook"); err != nil {
		return err
	}
	list := map[uint32]*[]Function{
		1: &p.Hooks.BeforeApply, 2: &p.Hooks.AfterApply, 3: &p.Hooks.BeforeRevert, 4: &p.Hooks.AfterRevert,
	}[r.kind]
	if list == nil {
		return p.badRecord(r.offset, "a hook is of unknown kind %d", r.kind)
	}
	*list = append(*list, Function{Addr: r.pointer})
	return nil
}

// checkCode checks that a record's pointer points to code.
func (p *Patch) checkCode(r record, what string) error {
	if !p.Image.Executable(r.pointer) {
		return p.badReplacement(r.offset, "%s at %#x is not a function", what, r.pointer)
	}
	return nil
}

func (p *Patch) badReplacement(off uint64, format string, args ...any) error {
	e := p.badRecord(off, format, args...)
	e.Code, e.Hint = "patch-bad-replacement", ""
	return e
}

func (p *Patch) buildID(off uint64, text string) (elfsym.BuildID, error) {
	id, err := hex.DecodeString(text)
	if err != nil || len(id) == 0 || len(id) > 64 {
		return nil, p.badRecord(off, "the build-id %.140q is not 1 to 64 bytes in hexadecimal", text)
	}
	return id, nil
}
