package trampoline

import (
	"encoding/binary"
	"fmt"
	"math"

	"hotpatch/internal/fault"
)

// The sizes of the jumps in bytes.
const (
	ShortSize = 2  // eb rel8
	NearSize  = 5  // e9 rel32
	FarSize   = 14 // ff 25 00000000, and the address behind it
)

// JumpShort encodes a jump of 2 bytes standing at from. It reaches from 128
// bytes before to 127 bytes behind its own end; else the fault is
// "out-of-reach".
func JumpShort(from, to uint64) ([ShortSize]byte, error) {
	d := int64(to - (from + ShortSize))
	if d < math.MinInt8 || d > math.MaxInt8 {
		return [ShortSize]byte{}, outOfReach(from, to, d, "128 bytes")
	}
	return [ShortSize]byte{0xeb, byte(d)}, nil
}

// JumpNear encodes a jump of 5 bytes standing at from. It reaches 2 GiB in both
// directions, counted from its own end; else the fault is "out-of-reach".
func JumpNear(from, to uint64) ([NearSize]byte, error) {
	d := int64(to - (from + NearSize))
	if d < math.MinInt32 || d > math.MaxInt32 {
		return [NearSize]byte{}, outOfReach(from, to, d, "2 GiB")
	}
	b := [NearSize]byte{0xe9}
	binary.LittleEndian.PutUint32(b[1:], uint32(d))
	return b, nil
}

// JumpFar encodes a jump of 14 bytes that can stand and go anywhere: jmp *0(%rip)
// with the address behind it. It changes no register, no flag and no stack.
func JumpFar(to uint64) [FarSize]byte {
	b := [FarSize]byte{0xff, 0x25}
	binary.LittleEndian.PutUint64(b[6:], to)
	return b
}

// ParseJump recognises a jump that JumpShort, JumpNear or JumpFar encodes at the
// start of code, which stands at addr, and gives its destination. For a Pad form
// the destination of the short jump is the pad, where the other jump stands.
//
// Any function may begin with such a jump of its own: that it is ours only the
// caller can tell.
func ParseJump(code []byte, addr uint64) (dest uint64, ok bool) {
	switch {
	case len(code) >= ShortSize && code[0] == 0xeb:
		return addr + ShortSize + uint64(int64(int8(code[1]))), true
	case len(code) >= NearSize && code[0] == 0xe9:
		d := int32(binary.LittleEndian.Uint32(code[1:]))
		return addr + NearSize + uint64(int64(d)), true
	case len(code) >= FarSize && code[0] == 0xff && code[1] == 0x25 &&
		binary.LittleEndian.Uint32(code[2:]) == 0:
		return binary.LittleEndian.Uint64(code[6:]), true
	}
	return 0, false
}

func outOfReach(from, to uint64, d int64, reach string) error {
	return &fault.Error{
		Kind:  fault.Unfit,
		Code:  "out-of-reach",
		What:  "cannot encode the jump",
		Where: fmt.Sprintf("0x%x", from),
		Why:   fmt.Sprintf("0x%x is %d bytes away, and the jump reaches %s", to, d, reach),
	}
}
