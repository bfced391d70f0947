package elfsym

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// codeRange is the half-open range [start, end) of link-time addresses.
type codeRange struct{ start, end uint64 }

// maxFrames bounds the size of .eh_frame, in bytes.
const maxFrames = 256 << 20

// frameRanges gives the ranges of code that .eh_frame describes (LSB Core,
// "Exception Frames"): one per function or part of one, also where there are no
// symbols. It returns what it understood, and whether that was
// everything; a file without .eh_frame describes nothing.
func (im *Image) frameRanges() (list []codeRange, whole bool) {
	addr, size, ok := im.ehFrame()
	if !ok {
		return nil, false
	}
	data, err := im.bytesAt(addr, size, maxFrames)
	if err != nil {
		return nil, false
	}
	cies := map[uint64]byte{} // offset of a CIE to the encoding of its pointers
	for at := uint64(0); at+4 <= size; {
		le := binary.LittleEndian
		n, head := uint64(le.Uint32(data[at:])), uint64(4)
		if n == 0 {
			// The end; but crt files may put one in front of the last frames.
			at += 4
			continue
		}
		if n == 0xffffffff {
			if at+12 > size {
				return list, false
			}
			n, head = le.Uint64(data[at+4:]), 12
		}
		if n < 4 || n > size-at-head {
			return list, false
		}
		rec := data[at+head : at+head+n]
		if id := uint64(le.Uint32(rec)); id == 0 {
			enc, ok := ciePointers(rec)
			if !ok {
				return list, false
			}
			cies[at] = enc
		} else {
			enc, ok := cies[at+head-id]
			if !ok {
				return list, false
			}
			r, ok := fdeRange(rec[4:], addr+at+head+4, enc)
			if !ok {
				return list, false
			}
			if r.end > r.start && im.Executable(r.start) {
				list = append(list, r)
			}
		}
		at += head + n
	}
	return list, true
}

// ehFrame finds .eh_frame by its section, else by .eh_frame_hdr, whose segment
// the unwinder uses; then it ends with the segment.
func (im *Image) ehFrame() (addr, size uint64, ok bool) {
	if s, ok := im.Section(".eh_frame"); ok && s.Type != elf.SHT_NOBITS {
		return s.Addr, s.Size, true
	}
	p := im.prog(elf.PT_GNU_EH_FRAME)
	if p == nil {
		return 0, 0, false
	}
	var h [8]byte
	const pcrelSdata4 = 0x1b
	if im.ReadVaddr(h[:], p.Vaddr) != nil || h[0] != 1 || h[1] != pcrelSdata4 {
		return 0, 0, false
	}
	addr = p.Vaddr + 4 + uint64(int64(int32(binary.LittleEndian.Uint32(h[4:]))))
	seg := im.segment(addr)
	if seg == nil || addr >= seg.Vaddr+seg.Filesz {
		return 0, 0, false
	}
	size = min(seg.Vaddr+seg.Filesz-addr, maxFrames)
	if p.Vaddr > addr { // the usual order is header, frames; the other one bounds the frames
		size = min(size, p.Vaddr-addr)
	}
	return addr, size, true
}

// ciePointers gives the encoding of the addresses in the FDEs of a CIE: the 'R'
// of its augmentation, or absolute.
func ciePointers(rec []byte) (enc byte, ok bool) {
	if len(rec) < 6 {
		return 0, false
	}
	version := rec[4]
	aug, rest, ok := bytes.Cut(rec[5:], []byte{0})
	if !ok || version != 1 && version != 3 {
		return 0, false
	}
	if len(aug) == 0 {
		return 0, true
	}
	if aug[0] != 'z' {
		return 0, false
	}
	skip := func() {
		_, n := binary.Uvarint(rest) // a signed one has the same length
		if n <= 0 {
			ok = false
			return
		}
		rest = rest[n:]
	}
	skip() // code alignment
	skip() // data alignment
	if version == 1 {
		if len(rest) == 0 {
			return 0, false
		}
		rest = rest[1:] // return address column
	} else {
		skip()
	}
	skip() // length of the augmentation data
	for _, c := range aug[1:] {
		if !ok || len(rest) == 0 && c != 'S' && c != 'B' {
			return 0, false
		}
		switch c {
		case 'R':
			return rest[0], true
		case 'L':
			rest = rest[1:]
		case 'P':
			n := pointerSize(rest[0])
			if n == 0 || len(rest) < 1+n {
				return 0, false
			}
			rest = rest[1+n:]
		case 'S', 'B':
		default:
			return 0, false
		}
	}
	return 0, ok
}

// pointerSize gives the size of an encoded pointer (DW_EH_PE_*), 0 if it is not
// fixed.
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

// fdeRange decodes the address and the length in an FDE. at is the link-time
// address of b.
func fdeRange(b []byte, at uint64, enc byte) (codeRange, bool) {
	n := pointerSize(enc)
	const absolute, pcrel = 0x00, 0x10
	if n == 0 || len(b) < 2*n || enc&0xf0 != absolute && enc&0xf0 != pcrel {
		return codeRange{}, false
	}
	start := fixedPointer(b, n, enc&0x08 != 0)
	size := fixedPointer(b[n:], n, false)
	if enc&0xf0 == pcrel {
		start += at
	}
	return codeRange{start, start + size}, start+size >= start
}

func fixedPointer(b []byte, n int, signed bool) uint64 {
	le := binary.LittleEndian
	switch {
	case n == 2 && signed:
		return uint64(int64(int16(le.Uint16(b))))
	case n == 2:
		return uint64(le.Uint16(b))
	case n == 4 && signed:
		return uint64(int64(int32(le.Uint32(b))))
	case n == 4:
		return uint64(le.Uint32(b))
	}
	return le.Uint64(b)
}
