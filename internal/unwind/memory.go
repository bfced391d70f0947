package unwind

import (
	"encoding/binary"
	"sort"

	"hotpatch/internal/procfs"
)

const pageSize = 4096

// pages reads memory through a small cache, so that the words of a stack do not
// cost a system call each. It is emptied before every walk.
type pages struct {
	mem   procfs.Memory
	slots [16]struct {
		addr  uint64
		valid bool
		data  [pageSize]byte
	}
}

func (p *pages) empty() {
	for i := range p.slots {
		p.slots[i].valid = false
	}
}

// page gives the page at an address that is a multiple of its size, or nil.
func (p *pages) page(addr uint64) *[pageSize]byte {
	s := &p.slots[addr/pageSize%uint64(len(p.slots))]
	if s.valid && s.addr == addr {
		return &s.data
	}
	s.addr, s.valid = addr, false
	if p.mem.ReadAt(s.data[:], addr) != nil {
		return nil
	}
	s.valid = true
	return &s.data
}

// read fills b from memory.
func (p *pages) read(b []byte, addr uint64) bool {
	for len(b) > 0 {
		off := addr % pageSize
		page := p.page(addr - off)
		if page == nil {
			return false
		}
		n := copy(b, page[off:])
		b, addr = b[n:], addr+uint64(n)
	}
	return true
}

// word reads a little-endian number of 1 to 8 bytes, extended with zeros.
func (p *pages) word(addr uint64, size int) (uint64, bool) {
	if off := addr % pageSize; off <= pageSize-8 {
		page := p.page(addr - off)
		if page == nil {
			return 0, false
		}
		return binary.LittleEndian.Uint64(page[off:]) << (64 - 8*size) >> (64 - 8*size), true
	}
	var b [8]byte
	if !p.read(b[:size], addr) {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b[:]), true
}

// layout is what is mapped where.
type layout struct{ maps []procfs.Map }

// at gives the index of the mapping that holds the address, or -1.
func (l layout) at(addr uint64) int {
	i := sort.Search(len(l.maps), func(i int) bool { return l.maps[i].End > addr })
	if i == len(l.maps) || l.maps[i].Start > addr {
		return -1
	}
	return i
}

// executable reports whether the address lies in an executable mapping.
func (l layout) executable(addr uint64) bool {
	i := l.at(addr)
	return i >= 0 && l.maps[i].Perm&procfs.Exec != 0
}

// maxGrowth is how far the main thread's stack is assumed to have grown since
// the mappings were read.
const maxGrowth = 64 << 20

const stackPerm = procfs.Read | procfs.Write

// stackEnd gives the end of the writable memory that holds a stack pointer:
// there the stack ends. Adjacent mappings count as one. ok is false if the
// stack pointer is not in writable memory.
func (l layout) stackEnd(sp uint64) (end uint64, ok bool) {
	i := sort.Search(len(l.maps), func(i int) bool { return l.maps[i].End > sp })
	if i == len(l.maps) || l.maps[i].Perm&stackPerm != stackPerm {
		return 0, false
	}
	if m := &l.maps[i]; m.Start > sp && (m.Path != "[stack]" || m.Start-sp > maxGrowth) {
		return 0, false
	}
	end = l.maps[i].End
	for _, m := range l.maps[i+1:] {
		if m.Start != end || m.Perm&stackPerm != stackPerm {
			break
		}
		end = m.End
	}
	return end, true
}
