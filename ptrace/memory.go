package ptrace

import (
	"errors"
	"syscall"

	"hotpatch/internal/procfs"
)

// In a pause the Go scheduler must not be asked for anything: whoever enters a system
// call in the ordinary way may lose its processor to another goroutine, and wait for it
// when it returns. So memory is read and written by raw system calls there.

// Memory is the memory of a process all of whose threads are, or are being, stopped. It
// belongs to one goroutine.
type Memory struct {
	mem *procfs.Mem // nil: only what the process may read itself
	pid int
	iov iovecs
}

// Paused gives the memory for use in a pause.
func Paused(pid int, mem *procfs.Mem) *Memory { return &Memory{mem: mem, pid: pid} }

// Alone gives a way to read pages that the process itself may read; others give an
// error. It needs no open file.
func Alone(pid int) *Memory { return &Memory{pid: pid} }

var errNotRead = errors.New("process_vm_readv does not reach the memory")

// ReadAt reads len(b) bytes at addr: with process_vm_readv(2), which copies once, and
// where that does not reach (pages without permissions, a main thread that has ended)
// as procfs.Mem does.
func (m *Memory) ReadAt(b []byte, addr uint64) error {
	if len(b) == 0 || processRead(m.pid, &m.iov, b, addr) == len(b) {
		return nil
	}
	if m.mem == nil {
		return errNotRead
	}
	if n, errno := preadRaw(m.mem.Fd(), b, addr); errno == 0 && n == len(b) {
		return nil
	}
	return m.mem.ReadAt(b, addr) // for its error
}

// WriteAt writes as procfs.Mem does. Precondition: not Alone.
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
