package ptrace

import (
	"encoding/binary"
	"fmt"
	"os"
)

// Pages tells which pages of a process's private anonymous memory exist. Reading one
// that was never touched would bring it into being, and the process would grow by
// what is only looked through. It may be used in a pause, and belongs to one goroutine.
type Pages struct {
	pagemap *os.File // of /proc/PID, see the kernel's Documentation/admin-guide/mm/pagemap.rst
	buf     []byte   // entries of 8 bytes
	from, n uint64   // the page of the first entry, and how many there are
}

// NewPages makes one of an open pagemap.
func NewPages(pagemap *os.File) *Pages { return &Pages{pagemap: pagemap, buf: make([]byte, 4096)} }

const pageSize = 4096

// Next gives the first sequence of existing pages, or a part of it, in [at, end): its
// bounds, or end twice if there is none. Pages in swap exist, guard pages
// (MADV_GUARD_INSTALL) do not.
func (p *Pages) Next(at, end uint64) (from, to uint64, err error) {
	for ; at < end; at = (at/pageSize + 1) * pageSize {
		switch there, err := p.exists(at / pageSize); {
		case err != nil:
			return end, end, err
		case !there && from != 0:
			return from, min(at, end), nil
		case there && from == 0:
			from = at
		}
		const most = 256 // pages, so that a part of a sequence is not long in coming
		if from != 0 && at-from >= most*pageSize {
			return from, at, nil
		}
	}
	if from == 0 {
		return end, end, nil
	}
	return from, end, nil
}

// Forget drops what was read: the process has run since.
func (p *Pages) Forget() { p.n = 0 }

func (p *Pages) exists(page uint64) (bool, error) {
	if page-p.from >= p.n {
		n, errno := preadRaw(int(p.pagemap.Fd()), p.buf, page*8)
		if errno != 0 || n < 8 {
			return false, fmt.Errorf("read which pages exist: %w", errno)
		}
		p.from, p.n = page, uint64(n)/8
	}
	const present, swapped, guard = 1 << 63, 1 << 62, 1 << 58
	e := binary.LittleEndian.Uint64(p.buf[8*(page-p.from):])
	return e&(present|swapped) != 0 && e&guard == 0, nil
}
