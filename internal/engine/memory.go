package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"hotpatch/internal/procfs"
	"hotpatch/internal/quiesce"
	"hotpatch/ptrace"
)

const pageSize = 4096

// pages reads the pages of a process's mappings that exist, in memory or in
// swap; one that was never touched is not brought into being by looking at it.
type pages struct {
	mem     *procfs.Mem
	pagemap *os.File
	buf     []byte
	entries []byte
	// unreadable is the address of a page that exists and that the kernel does not let
	// anybody read (of a device, or of memfd_secret(2)); 0 if there was none.
	unreadable uint64
}

func (t *target) newPages() (*pages, error) {
	f, err := t.pagemap()
	if err != nil {
		return nil, err
	}
	const chunk = 1 << 20
	return &pages{mem: t.mem, pagemap: f, buf: make([]byte, chunk), entries: make([]byte, 8*chunk/pageSize)}, nil
}

// pagemap opens the file that tells which pages of the process exist.
func (t *target) pagemap() (*os.File, error) {
	// A main thread that has ended has no memory: ask by way of one that lives, which
	// may end meanwhile.
	if st, err := t.proc.Status(t.proc.PID()); err == nil && st.HasMemory {
		return t.proc.OpenRel("pagemap", os.O_RDONLY)
	}
	tids, err := t.proc.Tasks()
	if err != nil {
		return nil, err
	}
	for _, tid := range tids {
		if st, err := t.proc.Status(tid); err != nil || !st.HasMemory {
			continue
		}
		if f, err := t.proc.OpenRel(fmt.Sprintf("task/%d/pagemap", tid), os.O_RDONLY); err == nil {
			return f, nil
		}
	}
	return t.proc.OpenRel("pagemap", os.O_RDONLY)
}

func (p *pages) close() { p.pagemap.Close() }

// each calls visit with runs of existing pages of a mapping until it gives false
// or an error. The bytes are valid during the call.
func (p *pages) each(m procfs.Map, visit func(addr uint64, b []byte) (bool, error)) error {
	for start := m.Start; start < m.End; start += uint64(len(p.buf)) {
		n := min(uint64(len(p.buf)), m.End-start) / pageSize
		if _, err := p.pagemap.ReadAt(p.entries[:8*n], int64(start/pageSize*8)); err != nil {
			return fmt.Errorf("read which pages exist: %w", err)
		}
		exists := func(i uint64) bool {
			// A guard page (MADV_GUARD_INSTALL) looks like one in swap.
			const present, swapped, guard = 1 << 63, 1 << 62, 1 << 58
			e := binary.LittleEndian.Uint64(p.entries[8*i:])
			return e&(present|swapped) != 0 && e&guard == 0
		}
		for i := uint64(0); i < n; {
			if !exists(i) {
				i++
				continue
			}
			j := i + 1
			for j < n && exists(j) {
				j++
			}
			b := p.buf[:(j-i)*pageSize]
			if err := p.read(b, start+i*pageSize); err != nil {
				return err
			}
			more, err := visit(start+i*pageSize, b)
			if err != nil || !more {
				return err
			}
			i = j
		}
	}
	return nil
}

// read reads whole pages. Those that cannot be read count as zeros.
func (p *pages) read(b []byte, addr uint64) error {
	err := p.mem.ReadAt(b, addr)
	if err == nil || !inaccessible(err) {
		return err
	}
	for ; len(b) > 0; b, addr = b[pageSize:], addr+pageSize {
		if err := p.mem.ReadAt(b[:pageSize], addr); err != nil {
			if !inaccessible(err) {
				return err
			}
			clear(b[:pageSize])
			p.unreadable = addr
		}
	}
	return nil
}

func inaccessible(err error) bool { return errors.Is(err, unix.EIO) || errors.Is(err, unix.EFAULT) }

// wordSearch looks for return addresses outside of all threads' stacks: of
// coroutines that are suspended, and of saved contexts.
type wordSearch struct {
	t     *target
	check *quiesce.Checker
	pages *pages
	maps  []procfs.Map
	skip  [][2]uint64
}

func (t *target) newWordSearch() (*wordSearch, error) {
	p, err := t.newPages()
	if err != nil {
		return nil, err
	}
	w := &wordSearch{t: t, pages: p}
	lo, hi := t.region.Range()
	w.skip = append(w.skip, [2]uint64{lo, hi})
	return w, nil
}

// ready prepares the next search.
func (w *wordSearch) ready(check *quiesce.Checker) (err error) {
	w.check = check
	w.maps, err = w.t.proc.Maps()
	return err
}

// find looks through all writable memory while everything is stopped, but for what
// was judged with the threads.
func (w *wordSearch) find(world *ptrace.World, over func() error) (*quiesce.Hit, error) {
	var guard uint64
	skip := w.skip
	for _, th := range world.Threads {
		skip = w.check.Judged(w.t.thread(th), skip)
		if guard == 0 && th.Regs.FsBase != 0 {
			// The pointer guard of glibc, with which setjmp hides addresses.
			var b [8]byte
			if w.t.mem.ReadAt(b[:], th.Regs.FsBase+0x30) == nil {
				guard = binary.LittleEndian.Uint64(b[:])
			}
		}
	}
	return w.look(skip, guard, over)
}

// look gives the first word in writable memory that is a return address into one
// of the ranges, plain or as setjmp of glibc stores it.
func (w *wordSearch) look(skip [][2]uint64, guard uint64, over func() error) (hit *quiesce.Hit, err error) {
	for _, m := range w.maps {
		if m.Perm&procfs.Write == 0 || m.Perm&procfs.Read == 0 || covered(skip, m) {
			continue
		}
		err := w.pages.each(m, func(addr uint64, b []byte) (bool, error) {
			for i := 0; i+8 <= len(b); i += 8 {
				v := binary.LittleEndian.Uint64(b[i:])
				r := w.check.Inside(v)
				if r == nil {
					// PTR_MANGLE on x86-64: exclusive or, then rotate left by 17.
					v = bits.RotateLeft64(v, -17) ^ guard
					r = w.check.Inside(v)
				}
				if r != nil && !skipped(skip, addr+uint64(i)) {
					hit = &quiesce.Hit{Range: r, Addr: v, Where: quiesce.InMemory, At: addr + uint64(i)}
					return false, nil
				}
			}
			return true, over()
		})
		if err != nil || hit != nil {
			return hit, err
		}
	}
	return nil, nil
}

// covered reports whether all of a mapping is to be skipped.
func covered(skip [][2]uint64, m procfs.Map) bool {
	for _, r := range skip {
		if r[0] <= m.Start && m.End <= r[1] {
			return true
		}
	}
	return false
}

// skipped reports whether an address is to be skipped.
func skipped(skip [][2]uint64, addr uint64) bool {
	for _, r := range skip {
		if addr >= r[0] && addr < r[1] {
			return true
		}
	}
	return false
}
