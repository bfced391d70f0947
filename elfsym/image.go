package elfsym

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math"

	"hotpatch/internal/fault"
)

// The sizes of ELF64 structures, in bytes (System V ABI, chapters 4 and 5).
const (
	headerSize  = 64
	progSize    = 56
	sectionSize = 64
	symSize     = 24
	relaSize    = 24
	dynSize     = 16
	pageSize    = 4096
)

// Limits for foreign files. They are far above anything that a linker makes;
// they bound what a hostile file can make us allocate.
const (
	maxTable    = 1 << 30 // bytes of one symbol or string table
	maxSmall    = 16 << 20
	maxSections = 1 << 20
)

// BuildID identifies the content of a linked file: the descriptor of its
// NT_GNU_BUILD_ID note. It is empty if the file has none.
type BuildID []byte

// String gives the id in hexadecimal.
func (b BuildID) String() string { return hex.EncodeToString(b) }

// Equal reports whether both are the same id. An empty id equals nothing, not
// even another empty one.
func (b BuildID) Equal(c BuildID) bool { return len(b) > 0 && bytes.Equal(b, c) }

// Image is one ELF file. Its methods read the file when they are called and
// keep what they have read; they are not safe for concurrent use. Nothing in a
// file can make them panic or allocate without bound: what does not add up is
// fault "damaged-elf".
//
// All addresses are those of the file (link-time addresses).
type Image struct {
	name  string // for messages
	r     io.ReaderAt
	size  uint64
	etype elf.Type
	entry uint64
	progs []elf.ProgHeader

	shoff           uint64
	shnum, shstrndx uint32

	// memBias is the load bias of an image that is read from the memory of a
	// process. The dynamic linker has replaced addresses in its dynamic section.
	fromMemory bool
	memBias    uint64

	secs     *sectionTable
	dyn      *dynamic
	tables   [2]*symtab
	versions *versions
	piece    []byte   // for reading tables in pieces; see tableSource
	scratch  [32]byte // for reading single entries; see few
}

// NewImage reads the headers of an ELF file of size bytes. Only 64-bit,
// little-endian files for x86-64 are taken. Faults: "not-elf", "not-64-bit",
// "wrong-machine", "damaged-elf". Sections, symbols and relocations are read
// later, by the methods that need them.
func NewImage(r io.ReaderAt, size int64) (*Image, error) {
	im := &Image{r: r, size: uint64(max(size, 0))}
	var h [headerSize]byte
	if im.size < 4 || !im.readOK(h[:4], 0) || string(h[:4]) != elf.ELFMAG {
		return nil, im.refuse("not-elf", "it does not begin with the ELF magic number")
	}
	if im.size < headerSize || !im.readOK(h[:], 0) {
		return nil, im.damaged("it has %d bytes, which is less than an ELF header", size)
	}
	le := binary.LittleEndian
	if c := elf.Class(h[elf.EI_CLASS]); c != elf.ELFCLASS64 {
		return nil, im.refuse("not-64-bit", fmt.Sprintf("its class is %v and only 64-bit files are supported", c))
	}
	if d := elf.Data(h[elf.EI_DATA]); d != elf.ELFDATA2LSB {
		return nil, im.refuse("wrong-machine", fmt.Sprintf("its byte order is %v", d))
	}
	if m := elf.Machine(le.Uint16(h[18:])); m != elf.EM_X86_64 {
		return nil, im.refuse("wrong-machine", fmt.Sprintf("it is for %v and not for x86-64", m))
	}
	if h[elf.EI_VERSION] != byte(elf.EV_CURRENT) {
		return nil, im.damaged("its ELF version is %d", h[elf.EI_VERSION])
	}
	im.etype = elf.Type(le.Uint16(h[16:]))
	im.entry = le.Uint64(h[24:])
	im.shoff = le.Uint64(h[40:])
	im.shnum = uint32(le.Uint16(h[60:]))
	im.shstrndx = uint32(le.Uint16(h[62:]))
	if es := le.Uint16(h[58:]); im.shoff != 0 && es != sectionSize {
		im.shoff = 0 // no usable section headers; no loader needs them
	}
	phoff, phentsize, phnum := le.Uint64(h[32:]), le.Uint16(h[54:]), le.Uint16(h[56:])
	if err := im.readProgs(phoff, phentsize, phnum); err != nil {
		return nil, err
	}
	return im, nil
}

func (im *Image) readProgs(off uint64, entsize, num uint16) error {
	if num == 0 {
		return nil
	}
	if entsize != progSize {
		return im.damaged("its program headers have %d bytes and not %d", entsize, progSize)
	}
	if num == 0xffff { // PN_XNUM: the number is elsewhere
		return im.damaged("it has too many program headers")
	}
	b, err := im.bytes(off, uint64(num)*progSize, maxSmall)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	end := uint64(0)
	for ; len(b) > 0; b = b[progSize:] {
		p := elf.ProgHeader{
			Type: elf.ProgType(le.Uint32(b)), Flags: elf.ProgFlag(le.Uint32(b[4:])),
			Off: le.Uint64(b[8:]), Vaddr: le.Uint64(b[16:]), Paddr: le.Uint64(b[24:]),
			Filesz: le.Uint64(b[32:]), Memsz: le.Uint64(b[40:]), Align: le.Uint64(b[48:]),
		}
		if p.Off+p.Filesz < p.Off || p.Vaddr+p.Memsz < p.Vaddr {
			return im.damaged("the segment at %#x has a size that wraps around", p.Vaddr)
		}
		if p.Type == elf.PT_LOAD {
			if p.Filesz > p.Memsz || p.Vaddr < end || p.Vaddr+p.Memsz > 1<<47 {
				return im.damaged("the segment at %#x is out of order, or of an impossible size", p.Vaddr)
			}
			end = p.Vaddr + p.Memsz
		}
		im.progs = append(im.progs, p)
	}
	return nil
}

// Name gives a name for messages, set by whoever opened the file; may be empty.
func (im *Image) Name() string { return im.name }

// SetName sets the name that faults of this image mention.
func (im *Image) SetName(name string) { im.name = name }

// Type gives the object file type, such as elf.ET_DYN.
func (im *Image) Type() elf.Type { return im.etype }

// Entry gives the address of the entry point; 0 if there is none.
func (im *Image) Entry() uint64 { return im.entry }

// FromMemory reports whether the image was read from the memory of a process,
// because its file cannot be read: then there are no sections, only what the
// dynamic linker uses, and ReadVaddr gives what is in memory now.
func (im *Image) FromMemory() bool { return im.fromMemory }

// Segments gives the program headers, in the order of the file. The caller must
// not change them.
func (im *Image) Segments() []elf.ProgHeader { return im.progs }

// segment gives the loaded segment that holds the address.
func (im *Image) segment(vaddr uint64) *elf.ProgHeader {
	for i := range im.progs {
		p := &im.progs[i]
		if p.Type == elf.PT_LOAD && p.Vaddr <= vaddr && vaddr-p.Vaddr < p.Memsz {
			return p
		}
	}
	return nil
}

// prog gives the first program header of a type.
func (im *Image) prog(t elf.ProgType) *elf.ProgHeader {
	for i := range im.progs {
		if im.progs[i].Type == t {
			return &im.progs[i]
		}
	}
	return nil
}

// Executable reports whether the address lies in a segment that is mapped
// executable.
func (im *Image) Executable(vaddr uint64) bool {
	p := im.segment(vaddr)
	return p != nil && p.Flags&elf.PF_X != 0
}

// ReadVaddr fills b with the file's content for a link-time address, before any
// relocation; the zeros behind a segment's file content (.bss) included. The
// whole range must lie in one loaded segment: fault "no-such-address", or
// "damaged-elf" if the file is shorter than it says.
func (im *Image) ReadVaddr(b []byte, vaddr uint64) error {
	p := im.segment(vaddr)
	if p == nil || p.Memsz-(vaddr-p.Vaddr) < uint64(len(b)) {
		return &fault.Error{
			Kind: fault.Unfit, Code: "no-such-address",
			What: fmt.Sprintf("cannot read %d bytes at %#x", len(b), vaddr), Where: im.name,
			Why: "no segment of the file holds them",
		}
	}
	off := vaddr - p.Vaddr
	n := uint64(0)
	if off < p.Filesz {
		n = min(p.Filesz-off, uint64(len(b)))
		if err := im.read(b[:n], p.Off+off); err != nil {
			return err
		}
	}
	clear(b[n:])
	return nil
}

// bytesAt reads size bytes at a link-time address into new memory.
func (im *Image) bytesAt(vaddr, size, limit uint64) ([]byte, error) {
	off, err := im.tableAt(vaddr, size)
	if err != nil {
		return nil, err
	}
	return im.bytes(off, size, limit)
}

// tableAt gives the file offset of a table at a link-time address.
func (im *Image) tableAt(vaddr, size uint64) (off uint64, err error) {
	p := im.segment(vaddr)
	if p == nil || vaddr-p.Vaddr > p.Filesz || p.Filesz-(vaddr-p.Vaddr) < size {
		return 0, im.damaged("a table of %d bytes at %#x is not in a segment", size, vaddr)
	}
	return p.Off + (vaddr - p.Vaddr), nil
}

// bytes reads size bytes at a file offset into new memory.
func (im *Image) bytes(off, size, limit uint64) ([]byte, error) {
	if err := im.checkTable(off, size, limit); err != nil {
		return nil, err
	}
	b := make([]byte, size)
	return b, im.read(b, off)
}

// checkTable refuses a table that is not within the file or has more than limit bytes.
func (im *Image) checkTable(off, size, limit uint64) error {
	if size > limit {
		return im.damaged("a table at offset %#x has %d bytes and no more than %d are accepted", off, size, limit)
	}
	if !im.inFile(off, size) {
		return im.damaged("a table at offset %#x with %d bytes is beyond the end of the file (%d bytes)", off, size, im.size)
	}
	return nil
}

func (im *Image) inFile(off, size uint64) bool { return off <= im.size && size <= im.size-off }

func (im *Image) read(b []byte, off uint64) error {
	if !im.inFile(off, uint64(len(b))) || off > math.MaxInt64 {
		return im.damaged("%d bytes at offset %#x are beyond the end of the file (%d bytes)", len(b), off, im.size)
	}
	if n, err := im.r.ReadAt(b, int64(off)); n < len(b) {
		e := im.damaged("%d bytes at offset %#x cannot be read", len(b), off)
		e.Err = err
		return e
	}
	return nil
}

func (im *Image) readOK(b []byte, off uint64) bool { return im.read(b, off) == nil }

func (im *Image) refuse(code, why string) *fault.Error {
	return &fault.Error{Kind: fault.Unfit, Code: code, What: "cannot use the ELF file", Where: im.name, Why: why}
}

func (im *Image) damaged(format string, args ...any) *fault.Error {
	return &fault.Error{Kind: fault.Unfit, Code: "damaged-elf", What: "cannot read the ELF file", Where: im.name, Why: fmt.Sprintf(format, args...)}
}

// BuildID gives the file's build-id, or nil if it has none or its notes are
// damaged.
func (im *Image) BuildID() BuildID {
	for i := range im.progs {
		p := &im.progs[i]
		if p.Type != elf.PT_NOTE {
			continue
		}
		if b, err := im.bytes(p.Off, p.Filesz, maxSmall); err == nil {
			if id := findBuildID(b, p.Align); id != nil {
				return id
			}
		}
	}
	// A debug file's segments may have no content, but its note section has.
	if s, ok := im.Section(".note.gnu.build-id"); ok && s.Type == elf.SHT_NOTE {
		if b, err := im.bytes(s.Off, s.Size, maxSmall); err == nil {
			return findBuildID(b, 4)
		}
	}
	return nil
}

// findBuildID looks for the build-id note in the content of a note segment
// (System V ABI, chapter 5, "Note Section"; the notes of segments with
// alignment 8 are padded to 8).
func findBuildID(b []byte, align uint64) BuildID {
	if align != 8 {
		align = 4
	}
	le := binary.LittleEndian
	for len(b) >= 12 {
		namesz, descsz, typ := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		desc := (12 + namesz + align - 1) &^ (align - 1)
		next := (desc + descsz + align - 1) &^ (align - 1)
		if desc+descsz > uint64(len(b)) {
			return nil
		}
		const ntGNUBuildID, maxID = 3, 64
		if typ == ntGNUBuildID && namesz == 4 && string(b[12:16]) == "GNU\x00" && 0 < descsz && descsz <= maxID {
			return BuildID(bytes.Clone(b[desc : desc+descsz]))
		}
		b = b[min(next, uint64(len(b))):]
	}
	return nil
}

// Interp gives the path of the program interpreter (the dynamic linker); empty
// for libraries and static programs.
func (im *Image) Interp() string {
	p := im.prog(elf.PT_INTERP)
	if p == nil || p.Filesz > pageSize {
		return ""
	}
	b, err := im.bytes(p.Off, p.Filesz, pageSize)
	if err != nil {
		return ""
	}
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
