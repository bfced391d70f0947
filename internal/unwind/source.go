package unwind

import (
	"bytes"
	"compress/zlib"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"hotpatch/elfsym"
)

// errNone says that an image has no such table.
var errNone = errors.New("there is none")

// ehTable reads the .eh_frame of an image.
func ehTable(im *elfsym.Image) (*table, error) {
	addr, size, open, err := findEhFrame(im)
	if err != nil {
		return nil, err
	}
	data := make([]byte, size)
	if err := im.ReadVaddr(data, addr); err != nil {
		return nil, err
	}
	f := format{eh: true, open: open, fixed: im.Type() == elf.ET_EXEC}
	return parseTable(data, addr, f, im.Executable)
}

// findEhFrame finds .eh_frame: by its section, or by the header that the
// segment PT_GNU_EH_FRAME holds (LSB Core, "DWARF Extensions": .eh_frame_hdr).
// The header does not tell a size: then open is set, and the table reaches no
// further than its segment.
func findEhFrame(im *elfsym.Image) (addr, size uint64, open bool, err error) {
	if s, ok := im.Section(".eh_frame"); ok && s.Type != elf.SHT_NOBITS && s.Flags&elf.SHF_ALLOC != 0 {
		if s.Size > maxTable {
			return 0, 0, false, fmt.Errorf("it has %d bytes and no more than %d are accepted", s.Size, maxTable)
		}
		return s.Addr, s.Size, false, nil
	}
	for _, p := range im.Segments() {
		if p.Type != elf.PT_GNU_EH_FRAME {
			continue
		}
		var head [12]byte
		if err := im.ReadVaddr(head[:], p.Vaddr); err != nil {
			return 0, 0, false, err
		}
		c := cursor{b: head[:], at: 4}
		addr := c.pointer(head[1], p.Vaddr)
		if head[0] != 1 || c.bad || head[1]&peIndirect != 0 {
			return 0, 0, false, errors.New("the header .eh_frame_hdr is of an unknown form")
		}
		for _, seg := range im.Segments() {
			if seg.Type != elf.PT_LOAD || addr < seg.Vaddr || addr-seg.Vaddr >= seg.Filesz {
				continue
			}
			size := seg.Filesz - (addr - seg.Vaddr)
			if p.Vaddr > addr {
				size = min(size, p.Vaddr-addr)
			}
			return addr, min(size, maxTable), true, nil
		}
		return 0, 0, false, fmt.Errorf("its address %#x is in no segment", addr)
	}
	return 0, 0, false, errNone
}

// debugTable reads the .debug_frame of an image, for the code of another one
// that it belongs to.
func debugTable(im *elfsym.Image, code *elfsym.Image) (*table, error) {
	s, ok := im.Section(".debug_frame")
	if !ok || s.Type == elf.SHT_NOBITS {
		return nil, errNone
	}
	compressed := s.Flags&elf.SHF_COMPRESSED != 0
	s.Flags &^= elf.SHF_COMPRESSED
	data, err := im.SectionData(s, maxTable)
	if err == nil && compressed {
		data, err = inflate(data)
	}
	if err != nil {
		return nil, err
	}
	return parseTable(data, 0, format{fixed: true}, func(a uint64) bool { return a != 0 && code.Executable(a) })
}

// inflate unpacks a compressed section (System V ABI, chapter 4, "Section
// Compression").
func inflate(b []byte) ([]byte, error) {
	const header, typeZlib = 24, 1
	if len(b) < header {
		return nil, errors.New("the compressed section is cut off")
	}
	if typ := binary.LittleEndian.Uint32(b); typ != typeZlib {
		return nil, fmt.Errorf("its compression is of type %d, and only zlib (1) is known", typ)
	}
	size := binary.LittleEndian.Uint64(b[8:])
	if size > maxTable {
		return nil, fmt.Errorf("it has %d bytes and no more than %d are accepted", size, maxTable)
	}
	z, err := zlib.NewReader(bytes.NewReader(b[header:]))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	data, err := io.ReadAll(io.LimitReader(z, int64(size)+1))
	if err != nil {
		return nil, err
	}
	if uint64(len(data)) != size {
		return nil, fmt.Errorf("it unpacks to %d bytes, and %d are announced", len(data), size)
	}
	return data, nil
}
