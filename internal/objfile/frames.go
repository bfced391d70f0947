package objfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// frames splits the .eh_frame sections (LSB Core 5.0, 10.6).
func (p *parser) frames() error {
	for _, s := range p.o.Sections {
		if s.Name == ".eh_frame" && s.Data != nil {
			if err := p.split(s); err != nil {
				return fmt.Errorf(".eh_frame: %w", err)
			}
		}
	}
	return nil
}

func (p *parser) split(s *Section) error {
	cies := make(map[uint64]*cieEncoding)
	for at, size := uint64(0), uint64(len(s.Data)); at < size; {
		if size-at < 4 {
			return fmt.Errorf("%d bytes are left at its end", size-at)
		}
		n, head := uint64(le.Uint32(s.Data[at:])), uint64(4)
		if n == 0 { // the end; only crt files have one, and nothing may follow
			if size-at != 4 {
				return fmt.Errorf("it ends at 0x%x of %d bytes", at, size)
			}
			return nil
		}
		if n == 0xffffffff {
			return fmt.Errorf("the record at 0x%x has a length of 64 bits, which no compiler writes", at)
		}
		if n < 4 || n > size-at-head {
			return fmt.Errorf("the record at 0x%x has %d bytes", at, n)
		}
		rec := record{s: s, off: at, data: s.Data[at : at+head+n], relocs: s.Within(at, at+head+n)}
		id := uint64(le.Uint32(rec.data[4:]))
		if id == 0 {
			c, err := rec.cie()
			if err != nil {
				return fmt.Errorf("the CIE at 0x%x: %w", at, err)
			}
			cies[at] = c
			p.o.CIEs = append(p.o.CIEs, c.cie)
		} else {
			c := cies[at+4-id]
			if c == nil {
				return fmt.Errorf("the FDE at 0x%x belongs to no CIE", at)
			}
			f, err := rec.fde(c)
			if err != nil {
				return fmt.Errorf("the FDE at 0x%x: %w", at, err)
			}
			if f != nil {
				p.o.Frames = append(p.o.Frames, f)
			}
		}
		at += head + n
	}
	return nil
}

// record is one CIE or FDE.
type record struct {
	s      *Section
	off    uint64 // in s
	data   []byte
	relocs []Reloc
}

// cieEncoding is a CIE with what its FDEs need to be read.
type cieEncoding struct {
	cie       *CIE
	augmented bool
	pointer   byte // DW_EH_PE_* of the addresses
	lsda      byte // DW_EH_PE_* of the LSDA pointer; peOmit if there is none
}

const peOmit = 0xff

var errShort = errors.New("it is cut off")

func (r record) cie() (*cieEncoding, error) {
	c := &cieEncoding{cie: &CIE{Section: r.s, Off: r.off, Size: uint64(len(r.data)), Relocs: r.relocs}, lsda: peOmit}
	if len(r.data) < 9 {
		return nil, errShort
	}
	version := r.data[8]
	aug, rest, ok := bytes.Cut(r.data[9:], []byte{0})
	if !ok || version != 1 && version != 3 {
		return nil, fmt.Errorf("version %d", version)
	}
	if len(aug) == 0 {
		return c, nil
	}
	if aug[0] != 'z' {
		return nil, fmt.Errorf("augmentation %.20q", aug)
	}
	c.augmented = true
	fields := 3 // code alignment, data alignment, return address column
	for i := range fields {
		n := 1
		if i < 2 || version == 3 {
			_, n = binary.Uvarint(rest)
		}
		if n <= 0 || n > len(rest) {
			return nil, errShort
		}
		rest = rest[n:]
	}
	size, n := binary.Uvarint(rest)
	if n <= 0 || size > uint64(len(rest)-n) {
		return nil, errShort
	}
	rest = rest[n : n+int(size)]
	for _, a := range aug[1:] {
		if a == 'S' || a == 'B' {
			continue
		}
		if len(rest) == 0 {
			return nil, errShort
		}
		enc := rest[0]
		rest = rest[1:]
		switch a {
		case 'R':
			c.pointer = enc
		case 'L':
			c.lsda = enc
		case 'P':
			n := pointerSize(enc)
			if n == 0 || n > len(rest) {
				return nil, fmt.Errorf("the personality routine's pointer has the encoding 0x%x", enc)
			}
			// Both slices end where the file's bytes of the section do.
			if x, ok := r.relocAt(uint64(cap(r.data) - cap(rest))); ok {
				c.cie.Personality = r.s.resolve(x, x.Off).Sym
			}
			rest = rest[n:]
		default:
			return nil, fmt.Errorf("augmentation %.20q", aug)
		}
	}
	if pointerSize(c.pointer) == 0 {
		return nil, fmt.Errorf("its addresses have the encoding 0x%x", c.pointer)
	}
	return c, nil
}

// fde decodes an FDE; it is nil if it describes nothing of this object.
func (r record) fde(c *cieEncoding) (*Frame, error) {
	n := pointerSize(c.pointer)
	if len(r.data) < 8+2*n {
		return nil, errShort
	}
	start, ok := r.relocAt(8)
	if !ok {
		return nil, errors.New("its address has no relocation")
	}
	if start.Sym.Section == nil {
		return nil, fmt.Errorf("it describes %.200q, which is not defined here", start.Sym.Name)
	}
	f := &Frame{
		Section: r.s, Off: r.off, Size: uint64(len(r.data)), Relocs: r.relocs, CIE: c.cie,
		Code: start.Sym.Section, CodeOff: start.Sym.Value + uint64(start.Addend),
	}
	switch n {
	case 8:
		f.CodeSize = le.Uint64(r.data[8+n:])
	case 4:
		f.CodeSize = uint64(le.Uint32(r.data[8+n:]))
	default:
		f.CodeSize = uint64(le.Uint16(r.data[8+n:]))
	}
	if f.CodeOff > f.Code.Size || f.CodeSize > f.Code.Size-f.CodeOff {
		return nil, fmt.Errorf("it describes %d bytes at 0x%x of %s, which has %d", f.CodeSize, f.CodeOff, f.Code.Name, f.Code.Size)
	}
	if !c.augmented || c.lsda == peOmit {
		return f, nil
	}
	rest := r.data[8+2*n:]
	size, k := binary.Uvarint(rest)
	if k <= 0 || size > uint64(len(rest)-k) {
		return nil, errShort
	}
	lsda, ok := r.relocAt(uint64(8 + 2*n + k))
	if size == 0 || !ok {
		return f, nil // a function without a language-specific area has a null pointer
	}
	if lsda.Sym.Section == nil {
		return nil, fmt.Errorf("its language-specific data is %.200q, which is not defined here", lsda.Sym.Name)
	}
	f.LSDA, f.LSDAOff = lsda.Sym.Section, lsda.Sym.Value+uint64(lsda.Addend)
	if f.LSDAOff >= f.LSDA.Size {
		return nil, fmt.Errorf("its language-specific data is at 0x%x of %s, which has %d bytes", f.LSDAOff, f.LSDA.Name, f.LSDA.Size)
	}
	return f, nil
}

// relocAt gives the relocation at an offset of the record.
func (r record) relocAt(off uint64) (Reloc, bool) {
	if list := r.s.Within(r.off+off, r.off+off+1); len(list) > 0 {
		return list[0], true
	}
	return Reloc{}, false
}

// pointerSize gives the size of an encoded pointer (DW_EH_PE_*) in bytes, 0 if
// it is not fixed.
func pointerSize(enc byte) int {
	switch enc & 0xf {
	case 0x00, 0x04, 0x0c:
		return 8
	case 0x03, 0x0b:
		return 4
	case 0x02, 0x0a:
		return 2
	}
	return 0
}
