package ptrace

import (
	"os"
	"reflect"
	"syscall"
	"time"
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

// placeRegs has the kernel write to where it is going to put a thread's registers, which
// are not known yet, unless it has written to the same page, last, before. It gives that
// page; see kernelWrites.
func placeRegs(r *Regs, last uintptr) uintptr {
	for _, off := range [2]uintptr{0, unsafe.Sizeof(*r) - 8} {
		at := unsafe.Add(unsafe.Pointer(r), off)
		if p := uintptr(at) &^ (pageSize - 1); p != last {
			last = p
			kernelWrites(unsafe.Slice((*byte)(at), 8))
		}
	}
	return last
}

// kernelWrites has the kernel write something to b: the first time costs as much as a page
// fault under a hypervisor that keeps tables of pages of its own, since the kernel has
// others than the program. Precondition: b is not empty.
func kernelWrites(b []byte) {
	var v iovecs
	processRead(os.Getpid(), &v, b, codeAddress())
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

// wait waits for one thread; block says whether it may block. The Go scheduler is not
// told: it would give this thread's processor to others, and this thread would have to
// wait for one before it could let the target go on.
func wait(tid int, status *int32, block bool) (int, syscall.Errno) {
	options := uintptr(unix.WALL)
	if !block {
		options |= unix.WNOHANG
	}
	r, _, errno := unix.RawSyscall6(unix.SYS_WAIT4, uintptr(tid), uintptr(unsafe.Pointer(status)), options, 0, 0, 0)
	return int(r), errno
}

// sigevent is struct sigevent of <asm-generic/siginfo.h> for SIGEV_THREAD_ID.
type sigevent struct {
	value  uint64
	signo  int32
	notify int32
	tid    int32
	_      [11]int32
}

const sigevThreadID = 4

// createTimer makes a timer that sends a signal to one thread of this process.
func createTimer(tid, signal int32) (id int32, errno syscall.Errno) {
	e := sigevent{signo: signal, notify: sigevThreadID, tid: tid}
	_, _, errno = unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&e)), uintptr(unsafe.Pointer(&id)))
	return id, errno
}

// setTimer makes a timer ring after a time, and then again and again.
func setTimer(id int32, first, then time.Duration) syscall.Errno {
	spec := [2]unix.Timespec{unix.NsecToTimespec(int64(then)), unix.NsecToTimespec(int64(first))}
	_, _, errno := unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	return errno
}

func deleteTimer(id int32) { _, _, _ = unix.RawSyscall(unix.SYS_TIMER_DELETE, uintptr(id), 0, 0) }

// iovecs are the arguments of one transfer, kept so that it allocates nothing.
type iovecs struct {
	local  unix.Iovec
	remote unix.RemoteIovec
}

// processRead reads memory of another process with process_vm_readv(2) and gives the
// number of bytes, or less than 0. Precondition: b is not empty.
func processRead(pid int, v *iovecs, b []byte, addr uint64) int {
	v.local = unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	v.remote = unix.RemoteIovec{Base: uintptr(addr), Len: len(b)}
	n, _, errno := unix.RawSyscall6(unix.SYS_PROCESS_VM_READV, uintptr(pid), uintptr(unsafe.Pointer(&v.local)), 1, uintptr(unsafe.Pointer(&v.remote)), 1, 0)
	if errno != 0 {
		return -1
	}
	return int(n)
}

// processReadv is processRead for many places. Precondition: neither b nor from is empty.
func processReadv(pid int, local *unix.Iovec, b []byte, from []unix.RemoteIovec) int {
	*local = unix.Iovec{Base: &b[0], Len: uint64(len(b))}
	n, _, errno := unix.RawSyscall6(unix.SYS_PROCESS_VM_READV, uintptr(pid), uintptr(unsafe.Pointer(local)), 1, uintptr(unsafe.Pointer(&from[0])), uintptr(len(from)), 0)
	if errno != 0 {
		return -1
	}
	return int(n)
}

// linksRaw gives the number of links of an open file, or 0.
func linksRaw(fd int) uint64 {
	var st unix.Stat_t
	if _, _, errno := unix.RawSyscall(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(&st)), 0); errno != 0 {
		return 0
	}
	return st.Nlink
}

// preadRaw is pread(2). Precondition: b is not empty.
func preadRaw(fd int, b []byte, off uint64) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(off), 0, 0)
	return int(n), errno
}

// pwriteRaw is pwrite(2). Precondition: b is not empty.
func pwriteRaw(fd int, b []byte, off uint64) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PWRITE64, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(off), 0, 0)
	return int(n), errno
}

// kernelSigaction is struct sigaction as rt_sigaction(2) takes it on x86-64.
type kernelSigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// Flags of <asm/signal.h>.
const (
	saRestart   = 0x10000000
	saNoCldStop = 0x00000001
)

// interruptible makes a caught signal interrupt system calls instead of
// restarting them, leaving the handler that the Go runtime installed.
func interruptible(sig syscall.Signal) syscall.Errno { return setFlags(sig, 0, saRestart) }

// quietStops makes the kernel send no SIGCHLD for each thread that stops, see
// sigaction(2), SA_NOCLDSTOP: the Go runtime would wake a thread for each of them.
func quietStops() syscall.Errno { return setFlags(syscall.SIGCHLD, saNoCldStop, 0) }

// setFlags changes the flags of a signal's disposition, and nothing else of it.
func setFlags(sig syscall.Signal, set, clear uint64) syscall.Errno {
	var a kernelSigaction
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&a)), 8, 0, 0); errno != 0 {
		return errno
	}
	if a.handler <= 1 { // SIG_DFL, SIG_IGN
		return syscall.EINVAL
	}
	a.flags = a.flags&^clear | set
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&a)), 0, 8, 0, 0)
	return errno
}

// scheduler is the policy and priority of a thread, see sched_setscheduler(2).
type scheduler struct {
	policy   int
	priority int32
}

// getScheduler reads those of a thread; 0 is the calling one.
func getScheduler(tid int) (scheduler, syscall.Errno) {
	var s scheduler
	r, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, uintptr(tid), 0, 0)
	if errno != 0 {
		return s, errno
	}
	s.policy = int(r)
	_, _, errno = unix.RawSyscall(unix.SYS_SCHED_GETPARAM, uintptr(tid), uintptr(unsafe.Pointer(&s.priority)), 0)
	return s, errno
}

// setScheduler changes those of a thread; 0 is the calling one.
func setScheduler(tid int, s scheduler) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(tid), uintptr(s.policy), uintptr(unsafe.Pointer(&s.priority)))
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

// madvPopulateRead is MADV_POPULATE_READ of <linux/mman.h>, since Linux 5.14.
const madvPopulateRead = 22

// populate has pages of this process mapped that are in memory already.
func populate(start, end uint64) {
	_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, uintptr(start), uintptr(end-start), madvPopulateRead)
}

// codeAddress gives an address among this program's code.
func codeAddress() uint64 { return uint64(reflect.ValueOf(populate).Pointer()) }
