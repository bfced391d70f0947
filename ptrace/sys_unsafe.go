package ptrace

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// request issues one ptrace request with plain numbers.
func request(req int, tid int, addr, data uintptr) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(req), uintptr(tid), addr, data, 0, 0)
	return errno
}

// getRegs reads the general registers of a stopped thread.
func getRegs(tid int, r *Regs) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GETREGS, uintptr(tid), 0, uintptr(unsafe.Pointer(r)), 0, 0)
	return errno
}

// setRegs writes the general registers of a stopped thread.
func setRegs(tid int, r *Regs) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SETREGS, uintptr(tid), 0, uintptr(unsafe.Pointer(r)), 0, 0)
	return errno
}

// rseqConfiguration is struct ptrace_rseq_configuration of <linux/ptrace.h>.
type rseqConfiguration struct {
	pointer   uint64
	size      uint32
	signature uint32
	flags     uint32
	_         uint32
}

// getRseq reads where a thread registered its restartable-sequence area.
func getRseq(tid int, c *rseqConfiguration) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, ptraceGetRseqConfiguration, uintptr(tid),
		unsafe.Sizeof(*c), uintptr(unsafe.Pointer(c)), 0, 0)
	return errno
}

// wait waits for one thread; block says whether it may block. It is not a raw
// system call: the Go scheduler may need the processor meanwhile.
func wait(tid int, status *int32, block bool) (int, syscall.Errno) {
	options := uintptr(unix.WALL)
	if !block {
		r, _, errno := unix.RawSyscall6(unix.SYS_WAIT4, uintptr(tid), uintptr(unsafe.Pointer(status)), options|unix.WNOHANG, 0, 0, 0)
		return int(r), errno
	}
	r, _, errno := unix.Syscall6(unix.SYS_WAIT4, uintptr(tid), uintptr(unsafe.Pointer(status)), options, 0, 0, 0)
	return int(r), errno
}

// kernelSigaction is struct sigaction as rt_sigaction(2) takes it on x86-64.
type kernelSigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// saRestart is SA_RESTART of <asm/signal.h>.
const saRestart = 0x10000000

// interruptible makes a caught signal interrupt system calls instead of
// restarting them, leaving the handler that the Go runtime installed.
func interruptible(sig syscall.Signal) syscall.Errno {
	var a kernelSigaction
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&a)), 8, 0, 0); errno != 0 {
		return errno
	}
	a.flags &^= saRestart
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&a)), 0, 8, 0, 0)
	return errno
}

// scheduler is the policy and priority of a thread, see sched_setscheduler(2).
type scheduler struct {
	policy   int
	priority int32
}

func getScheduler() (scheduler, syscall.Errno) {
	var s scheduler
	r, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, 0, 0, 0)
	if errno != 0 {
		return s, errno
	}
	s.policy = int(r)
	_, _, errno = unix.RawSyscall(unix.SYS_SCHED_GETPARAM, 0, uintptr(unsafe.Pointer(&s.priority)), 0)
	return s, errno
}

func setScheduler(s scheduler) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(s.policy), uintptr(unsafe.Pointer(&s.priority)))
	return errno
}

// getXState reads the extended state (x87, SSE, AVX, …) of a stopped thread into
// b and gives its length. See ptrace(2), PTRACE_GETREGSET.
func getXState(tid int, b []byte) (int, syscall.Errno) {
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_GETREGSET, uintptr(tid), ntX86XState, uintptr(unsafe.Pointer(&iov)), 0, 0)
	return int(iov.Len), errno
}

const ntX86XState = 0x202
