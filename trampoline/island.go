package trampoline

import "encoding/binary"

// The layout of an island: a page of code that is never written again once it
// is filled, and directly behind it a page of data with the destinations.
const (
	IslandCodeSize = 4096 // bytes of code
	IslandDataSize = 4096 // bytes of data, directly behind the code
	SlotSize       = 8    // bytes of a slot, and of the pointer that belongs to it
	IslandSlots    = IslandCodeSize / SlotSize
)

// IslandCode gives the code of an island. Slot i stands at offset 8*i and is
// jmp *disp32(%rip) with two int3 behind it; it goes where the i-th 8-byte word
// of the data page says. So every slot has the same bytes, and a new destination
// is one aligned store of 8 bytes and no change of code.
func IslandCode() []byte {
	const jmpSize = 6
	slot := [SlotSize]byte{0xff, 0x25, 6: 0xcc, 7: 0xcc}
	binary.LittleEndian.PutUint32(slot[2:], IslandCodeSize-jmpSize)
	code := make([]byte, 0, IslandCodeSize)
	for range IslandSlots {
		code = append(code, slot[:]...)
	}
	return code
}
