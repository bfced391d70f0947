package inject

import (
	"bytes"
	"fmt"

	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
)

// Region is the one mapping of hotpatch's own that every patched process has.
type Region struct {
	Base uint64
}

// Root is the address of the ledger's root page. It is mapped r-x: the process
// cannot write it by accident.
func (r Region) Root() uint64 { return r.Base + rootOffset }

// data is the address of D.
func (r Region) data() uint64 { return r.Base + dataOffset }

// Range gives the first address of the region and the first one behind it.
func (r Region) Range() (lo, hi uint64) { return r.Base, r.Base + regionSize }

var regionMagic = regionCode[:16]

// isRegion reports whether the mappings m and next can be the two parts of a
// region: the r-x pages end 8 KiB above a multiple of 1 MiB, and rw- pages
// follow. The kernel may have merged either part with a neighbour of the same
// kind, so that only the border between them is sure.
func isRegion(m, next procfs.Map) (Region, bool) {
	anonymous := func(m procfs.Map, want procfs.Perm) bool {
		return m.Inode == 0 && m.Path == "" && m.Perm&(procfs.Read|procfs.Write|procfs.Exec|procfs.Shared) == want
	}
	if !anonymous(m, procfs.Read|procfs.Exec) || !anonymous(next, procfs.Read|procfs.Write) || next.Start != m.End {
		return Region{}, false
	}
	base := m.End - execSize
	if base%regionAlign != 0 || base < m.Start || next.End < base+regionSize {
		return Region{}, false
	}
	return Region{Base: base}, true
}

// Find looks for the region in a process. It reads 16 bytes of memory for each
// place that has the shape of one, which is seldom more than the region itself.
func Find(maps []procfs.Map, mem procfs.Memory) (Region, bool) {
	for i := 0; i+1 < len(maps); i++ {
		r, ok := isRegion(maps[i], maps[i+1])
		if !ok {
			continue
		}
		var magic [16]byte
		if mem.ReadAt(magic[:], r.Base) == nil && bytes.Equal(magic[:], regionMagic) {
			return r, true
		}
	}
	return Region{}, false
}

// MayHaveRegion reports whether the text of /proc/PID/maps has a mapping that could be
// the first part of a region. Find tells for sure.
func MayHaveRegion(text []byte) bool {
	for line := range bytes.Lines(text) {
		// As isRegion has it: 7f0000000000-7f0000002000 r-xp 00000000 00:00 0
		if _, rest, ok := bytes.Cut(line, []byte(" r-xp ")); ok && bytes.Equal(bytes.TrimSpace(rest), []byte("00000000 00:00 0")) {
			return true
		}
	}
	return false
}

const (
	// lowest and highest addresses that are offered for mappings: above
	// vm.mmap_min_addr, below the end of user space with four-level paging.
	lowestAddr  = 0x10000
	highestAddr = 0x7fffffffe000
)

// Hole looks for size free bytes, aligned to align (a power of two), within
// [lo, hi), as near to want as there are, with a page free on both sides. It
// gives false if there are none. maps must be in ascending order.
func Hole(maps []procfs.Map, want, lo, hi, size, align uint64) (uint64, bool) {
	const margin = 0x1000
	lo, hi = max(lo, lowestAddr), min(hi, highestAddr)
	var best uint64
	found := false
	consider := func(from, to uint64) {
		from, to = max(from, lo), min(to, hi)
		if to < from || to-from < size+2*margin {
			return
		}
		first := (from + margin + align - 1) &^ (align - 1)
		last := (to - margin - size) &^ (align - 1)
		if first > last || first < from {
			return
		}
		at := min(max(want&^(align-1), first), last)
		if !found || distance(at, want) < distance(best, want) {
			best, found = at, true
		}
	}
	prev := uint64(0)
	for _, m := range maps {
		if m.Start > prev {
			consider(prev, m.Start)
		}
		prev = max(prev, m.End)
	}
	if prev < highestAddr {
		consider(prev, highestAddr)
	}
	return best, found
}

func distance(a, b uint64) uint64 {
	if a > b {
		return a - b
	}
	return b - a
}

// findSlack looks for the unused tail of an executable page: zeros behind the
// last byte that an executable segment of the module uses, inside its mapping.
// stale says that there is the stub of a hotpatch that was killed.
func (l *Loader) findSlack() (at uint64, stale bool, err error) {
	need := uint64(len(bootCode))
	for _, m := range l.space.Modules {
		if m.Image == nil || m.Ours || libraryRole(m) == "" && m != l.space.Executable() {
			continue
		}
		for _, seg := range m.Image.Segments() {
			if seg.Type != 1 /* PT_LOAD */ || seg.Flags&1 /* PF_X */ == 0 {
				continue
			}
			end := m.Addr(seg.Vaddr+seg.Memsz+15) &^ 15
			limit := m.Addr(seg.Vaddr+seg.Memsz+0xfff) &^ 0xfff
			if end+need > limit || !l.executable(end, limit) {
				continue
			}
			b := make([]byte, need)
			if l.mem.ReadAt(b, end) != nil {
				continue
			}
			if bytes.Equal(b[:bootSlots], bootCode[:bootSlots]) {
				return end, true, nil
			}
			if len(bytes.Trim(b, "\x00")) == 0 {
				return end, false, nil
			}
		}
	}
	return 0, false, &fault.Error{
		Kind: fault.NoAccess, Code: "no-slack",
		What: "cannot prepare the process", Where: l.libc.name,
		Why: fmt.Sprintf("neither the C library nor the program has %d unused bytes at the end of its code", need),
	}
}

// executable reports whether [lo, hi) is mapped r-x.
func (l *Loader) executable(lo, hi uint64) bool {
	for _, m := range l.space.Maps {
		if m.Start <= lo && hi <= m.End {
			return m.Perm&procfs.Exec != 0 && m.Perm&procfs.Write == 0
		}
	}
	return false
}
