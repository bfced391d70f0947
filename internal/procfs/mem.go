package procfs

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// Memory is anything that can be read like a process's memory: a live process,
// an image, a fake in a test. ReadAt fills all of b from the address or gives an
// error; b's content is then undefined.
type Memory interface {
	ReadAt(b []byte, addr uint64) error
}

// Mem is the memory of one process, open through /proc/PID/mem. It stays with
// the program that ran when it was opened: after an execve, or when the process
// has ended, every transfer gives fault "memory-gone".
//
// It may be used from several goroutines.
type Mem struct {
	f   *os.File
	fd  int
	pid int
}

// Fd gives the open file descriptor, for callers that read or write at a moment
// when nothing may allocate. It is valid until Close.
func (m *Mem) Fd() int { return m.fd }

// Close closes the file descriptor. The process is not affected.
func (m *Mem) Close() error { return m.f.Close() }

// ReadAt reads len(b) bytes at addr, ignoring page permissions except that the
// page must be mapped (FOLL_FORCE, see ptrace(2)). A short read is an error:
// fault "memory-read", or "memory-gone".
func (m *Mem) ReadAt(b []byte, addr uint64) error {
	for done := 0; done < len(b); {
		n, err := unix.Pread(m.fd, b[done:], int64(addr+uint64(done)))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return m.fault("read", addr, len(b), done, err)
		}
		done += n
	}
	return nil
}

// WriteAt writes b at addr, also to pages that are mapped read-only or
// executable: the kernel makes a private copy of such a page and leaves its
// permissions alone. Shared read-only mappings cannot be written. A short write
// is an error ("memory-write", or "memory-gone"), after which the first bytes
// may be written: callers read back.
func (m *Mem) WriteAt(b []byte, addr uint64) error {
	for done := 0; done < len(b); {
		n, err := unix.Pwrite(m.fd, b[done:], int64(addr+uint64(done)))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return m.fault("write", addr, len(b), done, err)
		}
		done += n
	}
	return nil
}

func (m *Mem) fault(verb string, addr uint64, size, done int, err error) error {
	e := &fault.Error{
		Kind:  fault.Failed,
		Code:  "memory-" + verb,
		What:  fmt.Sprintf("cannot %s %d bytes of memory", verb, size),
		Where: fmt.Sprintf("process %d, %#x", m.pid, addr),
		Err:   err,
	}
	switch {
	case err == nil, errors.Is(err, unix.ESRCH):
		// The kernel transfers 0 bytes when the address space has no user left.
		e.Kind, e.Code = fault.NoAccess, "memory-gone"
		e.Why = "the process has ended or runs another program now"
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EFAULT):
		e.Why = fmt.Sprintf("nothing accessible is mapped at %#x", addr+uint64(done))
	}
	return e
}
