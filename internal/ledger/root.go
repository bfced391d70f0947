package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"hotpatch/internal/fault"
)

// RootSize is the size of the root page in bytes.
const RootSize = 4096

// Where things are in the root page, and what the limits are.
const (
	rootMagic    = "hotpatch"
	formatOffset = 8
	headerOffset = 64 // of the first header; the second follows at twice this
	headerSize   = 32
	commitOffset = 192

	// MaxBody is the greatest length of a body in bytes. A ledger of ten
	// thousand replaced functions needs less than half of it.
	MaxBody = 64 << 20

	maxGeneration = 1 << 62
)

// castagnoli gives the table, which is not made before it is needed.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// Header says where the body of one generation is.
type Header struct {
	Addr, Len  uint64
	Generation uint64
	CRC        uint32 // CRC-32C of the body
}

// Root is what a root page says.
type Root struct {
	Headers [2]Header // of even and of odd generations; zero if absent or torn
	Commit  uint64    // the generation whose transaction was committed last
}

// Write is bytes to be written at an address.
type Write struct {
	Addr  uint64
	Bytes []byte
}

// NewRoot gives a root page with no body.
func NewRoot() []byte {
	root := make([]byte, RootSize)
	copy(root, rootMagic)
	binary.LittleEndian.PutUint32(root[formatOffset:], Format)
	return root
}

// EncodeHeader gives the offset in the root page and the bytes that put the
// body at addr in force as generation gen.
func EncodeHeader(gen, addr uint64, body []byte) (off int, b []byte) {
	b = make([]byte, 0, headerSize)
	b = binary.LittleEndian.AppendUint64(b, addr)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(body)))
	b = binary.LittleEndian.AppendUint64(b, gen)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(body, castagnoli()))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
	return headerOffset * (1 + int(gen&1)), b
}

// CommitWord gives the offset in the root page and the 8 bytes that commit the
// transaction in the body of generation gen. They must be stored at once; the
// offset is a multiple of 8.
func CommitWord(gen uint64) (off int, b []byte) {
	return commitOffset, binary.LittleEndian.AppendUint64(nil, gen)
}

// Writes gives what must be written, one after the other, to put l in force as
// generation l.Generation+1 with the root page at address root: first the body,
// then its header. The caller sets l.Generation when both are written.
//
// The error is that of Encode, or "ledger-full" if the body does not fit into
// its area: then the caller maps a larger one, sets l.Areas[l.NextArea()] and
// calls again. The Details of that error are the length needed, an int.
func (l *Ledger) Writes(root uint64) ([]Write, error) {
	body, err := Encode(l)
	if err != nil {
		return nil, err
	}
	area := l.Areas[l.NextArea()]
	if uint64(len(body)) > area.Len {
		return nil, &fault.Error{Kind: fault.Failed, Code: "ledger-full", What: "cannot write the ledger",
			Where:   fmt.Sprintf("area %#x", area.Addr),
			Why:     fmt.Sprintf("it needs %d bytes and there are %d", len(body), area.Len),
			Details: len(body)}
	}
	off, header := EncodeHeader(l.Generation+1, area.Addr, body)
	return []Write{{area.Addr, body}, {root + uint64(off), header}}, nil
}

// NextArea is the index in l.Areas of the area that the next body goes to.
func (l *Ledger) NextArea() int { return int((l.Generation + 1) & 1) }

// ReadRoot decodes a root page. A header with a wrong checksum was being
// written when the writer was killed; it counts as absent. A page whose writing
// was cut short, down to nothing at all, is a root with no body.
//
// The errors are "ledger-damaged", and "ledger-format" if another version of
// hotpatch wrote the page.
func ReadRoot(root []byte) (Root, error) {
	if len(root) != RootSize {
		return Root{}, damaged("root page", "it has %d bytes instead of %d", len(root), RootSize)
	}
	if isTruncated(root, NewRoot()) {
		return Root{}, nil
	}
	if string(root[:len(rootMagic)]) != rootMagic {
		return Root{}, damaged("root page", "it begins with % x", root[:len(rootMagic)])
	}
	if f := binary.LittleEndian.Uint32(root[formatOffset:]); f != Format {
		return Root{}, otherFormat(uint64(f))
	}
	var r Root
	known := NewRoot() // with everything filled in that has a meaning
	for i := range r.Headers {
		off := headerOffset * (1 + i)
		b := root[off : off+headerSize]
		copy(known[off:], b)
		h := Header{
			Addr:       binary.LittleEndian.Uint64(b),
			Len:        binary.LittleEndian.Uint64(b[8:]),
			Generation: binary.LittleEndian.Uint64(b[16:]),
			CRC:        binary.LittleEndian.Uint32(b[24:]),
		}
		if crc32.Checksum(b[:28], castagnoli()) != binary.LittleEndian.Uint32(b[28:]) {
			continue
		}
		if h.Generation == 0 || h.Generation > maxGeneration || h.Generation&1 != uint64(i) ||
			h.Len > MaxBody || !inUser(h.Addr, h.Len) {
			return Root{}, damaged("root page", "header %d says generation %d, %#x+%#x", i, h.Generation, h.Addr, h.Len)
		}
		r.Headers[i] = h
	}
	r.Commit = binary.LittleEndian.Uint64(root[commitOffset:])
	copy(known[commitOffset:commitOffset+8], root[commitOffset:])
	if !bytes.Equal(known, root) {
		return Root{}, damaged("root page", "there are bytes where nothing should be")
	}
	if g := r.InForce().Generation; r.Commit > g {
		return Root{}, damaged("root page", "generation %d is committed, and the last one is %d", r.Commit, g)
	}
	return r, nil
}

// InForce gives the header of the body in force; its Generation is 0 if there
// is none.
func (r Root) InForce() Header {
	if r.Headers[1].Generation > r.Headers[0].Generation {
		return r.Headers[1]
	}
	return r.Headers[0]
}

// isTruncated reports whether b is the beginning of whole, then zeros.
func isTruncated(b, whole []byte) bool {
	n := 0
	for n < len(b) && b[n] == whole[n] {
		n++
	}
	return len(bytes.Trim(b[n:], "\x00")) == 0
}

func damaged(where, format string, args ...any) *fault.Error {
	return &fault.Error{Kind: fault.Differs, Code: "ledger-damaged",
		What: "cannot read the ledger", Where: where, Why: fmt.Sprintf(format, args...),
		Hint: "something has written over hotpatch's memory in this process: restart it when you can, and do not patch it until then"}
}

func otherFormat(found uint64) *fault.Error {
	return &fault.Error{Kind: fault.Unfit, Code: "ledger-format",
		What: "cannot read the ledger",
		Why:  fmt.Sprintf("its format is %d and this version of hotpatch knows %d", found, Format),
		Hint: "use the version of hotpatch that applied the patches"}
}
