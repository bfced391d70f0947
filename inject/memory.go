package inject

import (
	"fmt"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// Map maps anonymous private memory at a fixed place that must be free. prot is
// as for mmap(2). Fault "no-memory".
func (a *Agent) Map(addr, size uint64, prot uint64) error {
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED_NOREPLACE
	res, err := a.Do(Call{Fn: sysMmap, Args: [6]uint64{addr, size, prot, flags, ^uint64(0), 0}, Syscall: true})
	if err != nil {
		return err
	}
	switch got := res[0]; {
	case got == addr:
		return nil
	case int64(got) < 0 && int64(got) > -4096:
		return &fault.Error{
			Kind: fault.NoAccess, Code: "no-memory", What: "cannot map memory in the process",
			Where: fmt.Sprintf("%d bytes at %#x", size, addr), Why: "mmap gives " + unix.Errno(-int64(got)).Error(), Err: unix.Errno(-int64(got)),
		}
	default: // a kernel before 4.17 takes the address for a hint
		_, err := a.Do(Call{Fn: sysMunmap, Args: [6]uint64{got, size}, Syscall: true})
		if err == nil {
			err = &fault.Error{Kind: fault.NoAccess, Code: "no-memory", What: "cannot map memory in the process", Where: fmt.Sprintf("%#x", addr), Why: "the place was taken meanwhile", Err: unix.EEXIST}
		}
		return err
	}
}

// Unmap removes a mapping that Map made.
func (a *Agent) Unmap(addr, size uint64) error {
	_, err := a.Do(Call{Fn: sysMunmap, Args: [6]uint64{addr, size}, Syscall: true})
	return err
}

// Protect changes the protection of pages that Map made; prot is as for
// mprotect(2), and must not add execution.
func (a *Agent) Protect(addr, size, prot uint64) error {
	const sysMprotect = 10
	res, err := a.Do(Call{Fn: sysMprotect, Args: [6]uint64{addr, size, prot}, Syscall: true})
	if err != nil {
		return err
	}
	if e := int64(res[0]); e != 0 {
		return fmt.Errorf("protect %d bytes at %#x: %w", size, addr, unix.Errno(-e))
	}
	return nil
}
