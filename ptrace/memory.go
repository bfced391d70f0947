package ptrace

import (
	"syscall"

	"golang.org/x/sys/unix"

	"hotpatch/internal/procfs"
)

// In a pause the Go scheduler must not be asked for anything: whoever enters a system
// call in the ordinary way may lose its processor to another goroutine, and wait for it
// when it returns. So memory is read and written by raw system calls there.

// Memory is the memory of a process all of whose threads are, or are being, stopped. It
// belongs to one goroutine.
type Memory struct {
	mem *procfs.Mem
	pid int
	iov iovecs

	ahead ahead
}

// Paused gives the memory for use in a pause.
func Paused(pid int, mem *procfs.Mem) *Memory { return &Memory{mem: mem, pid: pid} }

// ReadAt reads len(b) bytes at addr: with process_vm_readv(2), which copies once, and
// where that does not reach (pages without permissions, a main thread that has ended)
// as procfs.Mem does.
func (m *Memory) ReadAt(b []byte, addr uint64) error {
	if len(b) == 0 || m.ahead.give(b, addr) || processRead(m.pid, &m.iov, b, addr) == len(b) {
		return nil
	}
	if n, errno := preadRaw(m.mem.Fd(), b, addr); errno == 0 && n == len(b) {
		return nil
	}
	return m.mem.ReadAt(b, addr) // for its error
}

// Batch is a number of places that are read at once. Places of one page that are added
// in the order of their addresses are read as one, with what lies between.
type Batch struct {
	m      *Memory
	buf    []byte
	places []place
	local  unix.Iovec
	remote []unix.RemoteIovec
	begins []int // where the bytes of each remote begin in buf
}

// place is what was added to a batch.
type place struct {
	addr    uint64
	at, len int // in buf
}

// NewBatch prepares reading many places at once. Places are added to it.
func (m *Memory) NewBatch() *Batch { return &Batch{m: m} }

// Add adds n bytes at addr to what is read.
func (b *Batch) Add(addr uint64, n int) {
	const page = 4096
	if last := len(b.remote) - 1; last >= 0 {
		r := &b.remote[last]
		lo := uint64(r.Base)
		if end := addr + uint64(n); addr >= lo+uint64(r.Len) && end <= lo-lo%page+page {
			b.buf = append(b.buf, make([]byte, end-lo-uint64(r.Len))...)
			r.Len = int(end - lo)
			b.places = append(b.places, place{addr, len(b.buf) - n, n})
			return
		}
	}
	b.begins = append(b.begins, len(b.buf))
	b.places = append(b.places, place{addr, len(b.buf), n})
	b.buf = append(b.buf, make([]byte, n)...)
	b.remote = append(b.remote, unix.RemoteIovec{Base: uintptr(addr), Len: n})
}

// Bytes gives what Read has read at the place that was added as number i, from 0. It is
// valid until the next Read.
func (b *Batch) Bytes(i int) []byte { return b.buf[b.places[i].at:][:b.places[i].len] }

// Read reads all places.
func (b *Batch) Read() error {
	for first := 0; first < len(b.remote); first += maxIovecs {
		last := min(first+maxIovecs, len(b.remote)) - 1
		part := b.buf[b.begins[first] : b.begins[last]+b.remote[last].Len]
		if processReadv(b.m.pid, &b.local, part, b.remote[first:last+1]) != len(part) {
			return b.readEach()
		}
	}
	return nil
}

// readEach reads one place after the other, as ReadAt can.
func (b *Batch) readEach() error {
	for i := range b.places {
		if err := b.m.ReadAt(b.Bytes(i), b.places[i].addr); err != nil {
			return err
		}
	}
	return nil
}

// maxIovecs is UIO_MAXIOV of <linux/uio.h>.
const maxIovecs = 1024

// WriteAt writes as procfs.Mem does.
func (m *Memory) WriteAt(b []byte, addr uint64) error {
	if len(b) == 0 {
		return nil
	}
	n, errno := pwriteRaw(m.mem.Fd(), b, addr)
	switch {
	case errno == 0 && n == len(b):
		return nil
	case errno == 0 || errno == syscall.EINTR:
		return m.mem.WriteAt(b[n:], addr+uint64(n))
	}
	return m.mem.WriteAt(b, addr) // for its error
}
