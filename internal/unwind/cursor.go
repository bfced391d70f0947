package unwind

import "encoding/binary"

// cursor reads little-endian values from bytes. After the first read beyond the
// end, bad is set and everything reads as zero.
type cursor struct {
	b   []byte
	at  int
	bad bool
}

// take gives the next n bytes.
func (c *cursor) take(n uint64) []byte {
	if c.bad || n > uint64(len(c.b)-c.at) {
		c.bad = true
		return nil
	}
	b := c.b[c.at : c.at+int(n)]
	c.at += int(n)
	return b
}

func (c *cursor) done() bool { return c.bad || c.at >= len(c.b) }

func (c *cursor) u8() uint8 {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// uleb reads an unsigned LEB128 number (DWARF 5, 7.6). One that does not fit
// into 64 bits is bad.
func (c *cursor) uleb() uint64 {
	var v uint64
	for shift := uint(0); ; shift += 7 {
		b := c.u8()
		if c.bad || shift > 63 || shift == 63 && b > 1 {
			c.bad = true
			return 0
		}
		v |= uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			return v
		}
	}
}

// sleb reads a signed LEB128 number of at most 64 bits.
func (c *cursor) sleb() int64 {
	var v uint64
	for shift := uint(0); ; {
		b := c.u8()
		if c.bad || shift > 63 || shift == 63 && b != 0 && b != 0x7f {
			c.bad = true
			return 0
		}
		v |= uint64(b&0x7f) << shift
		shift += 7
		if b&0x80 == 0 {
			if b&0x40 != 0 && shift < 64 {
				v |= ^uint64(0) << shift
			}
			return int64(v)
		}
	}
}

// cstring reads a string up to its zero byte.
func (c *cursor) cstring() []byte {
	if c.bad {
		return nil
	}
	for i, b := range c.b[c.at:] {
		if b == 0 {
			s := c.b[c.at : c.at+i]
			c.at += i + 1
			return s
		}
	}
	c.bad = true
	return nil
}

// Pointer encodings (LSB Core, "DWARF Exception Header Encoding").
const (
	peAbsolute = 0x00 // application: none
	pePCRel    = 0x10 // application: relative to the place of the value
	peSigned   = 0x08
	peIndirect = 0x80
	peOmit     = 0xff
)

// value reads a number in the format of an encoding, without applying it.
func (c *cursor) value(enc byte) uint64 {
	switch enc & 0x0f {
	case 0x00, 0x04, 0x0c: // absptr, udata8, sdata8
		return c.u64()
	case 0x01:
		return c.uleb()
	case 0x02:
		return uint64(c.u16())
	case 0x03:
		return uint64(c.u32())
	case 0x09:
		return uint64(c.sleb())
	case 0x0a:
		return uint64(int64(int16(c.u16())))
	case 0x0b:
		return uint64(int64(int32(c.u32())))
	}
	c.bad = true
	return 0
}

// pointer reads an encoded address. base is the address of c.b[0]. Encodings
// that need more than the place of the value are bad.
func (c *cursor) pointer(enc byte, base uint64) uint64 {
	at := base + uint64(c.at)
	switch enc &^ 0x0f {
	case peAbsolute:
		return c.value(enc)
	case pePCRel:
		return at + c.value(enc)
	}
	c.bad = true
	return 0
}
