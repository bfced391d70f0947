package procfs

import "golang.org/x/sys/unix"

// Sharer gives a process that runs in the same memory as this one and is not of its
// threads: a child between vfork(2) and exec, or made by clone(2) with CLONE_VM and
// without CLONE_THREAD. It gives 0 if there is none that this process may look at.
func (p *Proc) Sharer() (pid int, err error) {
	pids, err := Processes()
	if err != nil {
		return 0, err
	}
	self := unix.Getpid()
	for _, other := range pids {
		// KCMP_VM of <linux/kcmp.h>; kcmp(2) gives 0 if both have the same memory.
		const memory = 1
		if other == p.pid || other == self {
			continue
		}
		switch same, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(p.pid), uintptr(other), memory, 0, 0, 0); {
		case errno == unix.ENOSYS:
			return 0, nil // the kernel has no kcmp
		case errno == 0 && same == 0 && p.runs(other):
			return other, nil
		}
	}
	return 0, nil
}

// runs reports whether a process has memory: kcmp finds those that have none equal.
func (p *Proc) runs(pid int) bool {
	other, err := Open(pid)
	if err != nil {
		return false
	}
	defer other.Close()
	st, err := other.Status(0)
	return err == nil && st.HasMemory
}
