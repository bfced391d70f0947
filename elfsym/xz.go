package elfsym

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"crypto/sha256"

	"github.com/ulikunitz/xz/lzma"

	"hotpatch/internal/fault"
)

// maxWindows bounds the memory for the decoder's windows, in bytes, over all
// blocks of a file. xz -9 uses 64 MiB, and one block for small files.
const maxWindows = 1 << 30

// unpackXZ unpacks one xz stream of at most limit bytes of content. The
// container is read here (The .xz File Format 1.2.1) and only the compressed
// data is left to the lzma package, because a block header can ask for a window
// of 4 GiB, for every block. The index at the end is not needed and not read;
// the check of every block is verified.
func unpackXZ(packed []byte, limit int64) ([]byte, error) {
	var out bytes.Buffer
	if err := unpackStream(packed, limit, &out); err != nil {
		return nil, &fault.Error{Kind: fault.Unfit, Code: "damaged-xz", What: "cannot unpack xz data", Why: err.Error()}
	}
	return out.Bytes(), nil
}

var errShortXZ = errors.New("it is cut off")

func unpackStream(b []byte, limit int64, out *bytes.Buffer) error {
	const headerLen = 12
	if len(b) < headerLen || string(b[:7]) != "\xfd7zXZ\x00\x00" || crc32.ChecksumIEEE(b[6:8]) != binary.LittleEndian.Uint32(b[8:]) {
		return errors.New("it has no valid xz header")
	}
	newCheck, err := blockCheck(b[7])
	if err != nil {
		return err
	}
	windows := int64(0)
	for b = b[headerLen:]; ; {
		if len(b) == 0 {
			return errShortXZ
		}
		if b[0] == 0 { // the index: no more blocks
			return nil
		}
		n, window, err := blockHeader(b)
		if err != nil {
			return err
		}
		if windows += window; windows > maxWindows {
			return fmt.Errorf("its blocks need windows of more than %d bytes", maxWindows)
		}
		if b, err = unpackBlock(b[n:], window, limit, newCheck(), out); err != nil {
			return err
		}
	}
}

// unpackBlock unpacks the data behind a block header and gives what follows the
// block.
func unpackBlock(b []byte, window, limit int64, check hash.Hash, out *bytes.Buffer) ([]byte, error) {
	src := bytes.NewReader(b)
	r, err := lzma.Reader2Config{DictCap: int(window)}.NewReader2(src)
	if err != nil {
		return nil, err
	}
	to := io.Writer(out)
	if check != nil {
		to = io.MultiWriter(out, check)
	}
	room := limit - int64(out.Len())
	n, err := io.Copy(to, io.LimitReader(r, room+1))
	if err != nil {
		return nil, err
	}
	if n > room {
		return nil, fmt.Errorf("it unpacks to more than %d bytes", limit)
	}
	used := (len(b) - src.Len() + 3) &^ 3
	if check == nil {
		return b[min(used, len(b)):], nil
	}
	if len(b) < used+check.Size() {
		return nil, errShortXZ
	}
	b = b[used:]
	if !bytes.Equal(sum(check), b[:check.Size()]) {
		return nil, errors.New("a block has a wrong checksum")
	}
	return b[check.Size():], nil
}

// sum gives a check as xz stores it: the CRCs are little-endian.
func sum(h hash.Hash) []byte {
	switch h := h.(type) {
	case hash.Hash32:
		return binary.LittleEndian.AppendUint32(nil, h.Sum32())
	case hash.Hash64:
		return binary.LittleEndian.AppendUint64(nil, h.Sum64())
	}
	return h.Sum(nil)
}

// blockCheck gives the kind of check that every block has (section 2.1.1.2).
func blockCheck(kind byte) (func() hash.Hash, error) {
	switch kind {
	case 0x00:
		return func() hash.Hash { return nil }, nil
	case 0x01:
		return func() hash.Hash { return crc32.NewIEEE() }, nil
	case 0x04:
		return func() hash.Hash { return crc64.New(crc64.MakeTable(crc64.ECMA)) }, nil
	case 0x0a:
		return sha256.New, nil
	}
	return nil, fmt.Errorf("it has checks of the unknown kind %d", kind)
}

// blockHeader gives the size of a block header and the window of its LZMA2
// filter, the only filter that is accepted (sections 3.1 and 5.3.1).
func blockHeader(b []byte) (size int, window int64, err error) {
	size = (int(b[0]) + 1) * 4
	if len(b) < size {
		return 0, 0, errShortXZ
	}
	h := b[:size-4]
	if crc32.ChecksumIEEE(h) != binary.LittleEndian.Uint32(b[size-4:]) {
		return 0, 0, errors.New("a block header has a wrong checksum")
	}
	flags, f := h[1], h[2:]
	if flags&0x3f != 0 {
		return 0, 0, errors.New("a block has more than one filter, or unknown flags")
	}
	for _, present := range []byte{0x40, 0x80} { // packed and unpacked size
		if flags&present == 0 {
			continue
		}
		_, n := binary.Uvarint(f)
		if n <= 0 {
			return 0, 0, errors.New("a block header has a size that is no number")
		}
		f = f[n:]
	}
	const lzma2, maxBits = 0x21, 30 // 30: 128 MiB
	if len(f) < 3 || f[0] != lzma2 || f[1] != 1 || f[2] > maxBits {
		return 0, 0, errors.New("a block has another filter than LZMA2, or a window of more than 128 MiB")
	}
	return size, int64(2|f[2]&1) << (f[2]/2 + 11), nil
}
