package objfile

import (
	"bytes"
	"compress/zlib"
	"debug/dwarf"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"strings"
)

// ErrNoDWARF is given by DWARF for an object without debugging information.
var ErrNoDWARF = errors.New("no debugging information")

// addrShift makes the addresses that DWARF gives to sections: section i stands
// at i<<addrShift, so that an address tells its section.
const addrShift = 40

// Address gives the address that stands in the object's DWARF for an offset in
// a section. It means nothing elsewhere.
func (s *Section) Address(off uint64) uint64 { return uint64(s.Index)<<addrShift + off }

// AtAddress is the reverse of Section.Address. ok is false for an address that
// no section has.
func (o *Object) AtAddress(addr uint64) (s *Section, off uint64, ok bool) {
	i, off := addr>>addrShift, addr&(1<<addrShift-1)
	if i == 0 || i >= uint64(len(o.Sections)) || off > o.Sections[i].Size {
		return nil, 0, false
	}
	return o.Sections[i], off, true
}

// DWARF reads the debugging information, with its relocations applied: addresses
// are those of Section.Address. The error is ErrNoDWARF, or says what is damaged
// or not understood (sections compressed other than by zlib, split files).
// Whoever reads the result should be ready for a panic of debug/dwarf on damaged
// input.
func (o *Object) DWARF() (d *dwarf.Data, err error) {
	defer func() {
		if r := recover(); r != nil {
			d, err = nil, fmt.Errorf("damaged debugging information: %v", r)
		}
	}()
	sections := make(map[string][]byte)
	for _, s := range o.Sections {
		name, ok := strings.CutPrefix(s.Name, ".debug_")
		if !ok || s.Data == nil || s.Flags&elf.SHF_ALLOC != 0 {
			continue
		}
		if name == "types" || name == "info" && s.Group != nil {
			return nil, errors.New("types are in sections of their own: compile with -fno-debug-types-section")
		}
		if s.Group != nil || sections[name] != nil {
			continue // a type unit or a macro unit; the main one stands outside of groups
		}
		if sections[name], err = o.relocated(s); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	if len(sections["info"]) == 0 {
		return nil, ErrNoDWARF
	}
	d, err = dwarf.New(sections["abbrev"], nil, nil, sections["info"], sections["line"], nil, sections["ranges"], sections["str"])
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"addr", "line_str", "str_offsets", "rnglists", "loclists"} {
		if b := sections[name]; b != nil {
			if err := d.AddSection(".debug_"+name, b); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// DebugAddr gives the section .debug_addr with its relocations applied (DWARF 5, 7.27), or
// nil: debug/dwarf does not look up what location expressions take from there.
func (o *Object) DebugAddr() []byte {
	for _, s := range o.Sections {
		if s.Name == ".debug_addr" && s.Group == nil && s.Data != nil && s.Flags&elf.SHF_ALLOC == 0 {
			if b, err := o.relocated(s); err == nil {
				return b
			}
		}
	}
	return nil
}

// relocated gives a copy of a debugging section with its relocations applied.
func (o *Object) relocated(s *Section) ([]byte, error) {
	b := bytes.Clone(s.Data)
	if s.Flags&elf.SHF_COMPRESSED != 0 {
		var err error
		if b, err = inflate(s.Data); err != nil {
			return nil, err
		}
	}
	for _, r := range s.Relocs {
		n := uint64(r.Width())
		if r.Off > uint64(len(b)) || n > uint64(len(b))-r.Off {
			return nil, fmt.Errorf("a relocation at 0x%x of %d bytes", r.Off, len(b))
		}
		value := r.Sym.Value + uint64(r.Addend)
		if to := r.Sym.Section; to != nil && to.Flags&elf.SHF_ALLOC != 0 {
			value += to.Address(0)
		}
		switch r.Type {
		case elf.R_X86_64_NONE:
		case elf.R_X86_64_64, elf.R_X86_64_DTPOFF64:
			le.PutUint64(b[r.Off:], value)
		case elf.R_X86_64_DTPOFF32:
			// gcc writes the eight bytes of DW_OP_const8u (0x0e) as such a relocation and a zero.
			if r.Off > 0 && b[r.Off-1] == 0x0e && len(b)-int(r.Off) >= 8 && le.Uint32(b[r.Off+4:]) == 0 {
				le.PutUint64(b[r.Off:], value)
				break
			}
			le.PutUint32(b[r.Off:], uint32(value))
		case elf.R_X86_64_32:
			le.PutUint32(b[r.Off:], uint32(value))
		default:
			return nil, fmt.Errorf("a relocation of type %s", r.Type)
		}
	}
	return b, nil
}

// inflate decompresses an SHF_COMPRESSED section (System V ABI, chapter 4,
// Elf64_Chdr). The header says how large it becomes; zlib cannot make more than
// about 1032 bytes of one.
func inflate(b []byte) ([]byte, error) {
	const header, maxRatio, maxSize = 24, 1040, 1 << 30
	if len(b) < header {
		return nil, errors.New("no compression header")
	}
	if kind := elf.CompressionType(le.Uint32(b)); kind != elf.COMPRESS_ZLIB {
		return nil, fmt.Errorf("compressed by %s", kind)
	}
	size := le.Uint64(b[8:])
	if size > maxSize || size > uint64(len(b))*maxRatio {
		return nil, fmt.Errorf("%d bytes that say they become %d", len(b), size)
	}
	z, err := zlib.NewReader(bytes.NewReader(b[header:]))
	if err != nil {
		return nil, err
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(z, out); err != nil {
		return nil, err
	}
	return out, nil
}
