package ptrace

// Regs is struct user_regs_struct of <sys/user.h> on x86-64.
type Regs struct {
	R15, R14, R13, R12, Rbp, Rbx, R11, R10, R9, R8 uint64
	Rax, Rcx, Rdx, Rsi, Rdi                        uint64
	OrigRax                                        uint64
	Rip, Cs, Eflags, Rsp, Ss                       uint64
	FsBase, GsBase, Ds, Es, Fs, Gs                 uint64
}

// userCode64 is the code segment of 64-bit user code on Linux; a thread that
// is in 32-bit code has 0x23.
const userCode64 = 0x33

// Is64Bit reports whether the thread is in 64-bit code.
func (r *Regs) Is64Bit() bool { return r.Cs == userCode64 }

// InSyscall reports whether the thread was stopped inside a system call.
func (r *Regs) InSyscall() bool { return int64(r.OrigRax) >= 0 }

// Errno codes of the kernel's own, which a program never sees: what a system
// call returns inside the kernel to say how it wants to be restarted
// (include/linux/errno.h).
const (
	eIntr              = -4
	eRestartSys        = -512
	eRestartNoIntr     = -513
	eRestartNoHand     = -514
	eRestartRestartBlk = -516
)

// RestartsUnlessHandled reports whether the interrupted system call starts
// again only if no handler runs: pause, sigsuspend, ppoll, nanosleep, …
func (r *Regs) RestartsUnlessHandled() bool {
	return r.InSyscall() && (int64(r.Rax) == eRestartNoHand || int64(r.Rax) == eRestartRestartBlk)
}

// interruptedByStop holds the system calls that return EINTR at any ptrace
// stop, because they do not tell a stop from a signal. Measured: epoll_wait,
// epoll_pwait, rt_sigtimedwait, semop, semtimedop, recvfrom with SO_RCVTIMEO.
// The others share the same code in the kernel.
var interruptedByStop = map[uint64]bool{
	0: true, 1: true, 19: true, 20: true, // read, write, readv, writev (sockets with a timeout)
	42: true, 43: true, 288: true, // connect, accept, accept4
	44: true, 45: true, 46: true, 47: true, 299: true, 307: true, // send…, recv…
	65: true, 220: true, // semop, semtimedop
	128: true,            // rt_sigtimedwait
	208: true, 333: true, // io_getevents, io_pgetevents
	232: true, 281: true, 441: true, // epoll_wait, epoll_pwait, epoll_pwait2
	426: true, // io_uring_enter
}

// hideInterrupt turns an EINTR that only the stop has caused into a restart,
// and reports whether it changed a register. The kernel restarts the call at
// the resume, or returns EINTR after all if a handler runs then.
func (r *Regs) hideInterrupt() bool {
	if !r.InSyscall() || int64(r.Rax) != eIntr || !interruptedByStop[r.OrigRax] {
		return false
	}
	nohand := int64(eRestartNoHand)
	r.Rax = uint64(nohand)
	return true
}

// BreaksAtStop reports whether the system call number is one that a stop
// interrupts visibly unless it is repaired.
func BreaksAtStop(nr int64) bool { return nr >= 0 && interruptedByStop[uint64(nr)] }
