// Package ptrace stops and drives the threads of a process: seize, interrupt,
// wait, registers, detach. It is the only package of hotpatch that uses unsafe,
// and nothing else in it depends on what the threads are stopped for.
//
// # One thread
//
// The kernel takes ptrace requests only from the OS thread that attached
// (ptrace(2)). Run therefore locks the calling goroutine to its OS thread, hands
// a Tracer to one function, and detaches everything when that function returns.
// All methods of Tracer and Thread must be called from within it.
//
// # What is never done
//
//   - PTRACE_ATTACH: it sends SIGSTOP. Threads are seized and interrupted, which
//     no program can observe.
//   - PTRACE_O_EXITKILL: if the tracer dies, the kernel detaches and the
//     threads run on.
//   - single-stepping and breakpoints: a forced SIGTRAP on a thread that ignores
//     or blocks it resets the disposition of the whole process.
//   - swallowing a signal: a signal that is met while waiting is kept and given
//     back with the detach.
//
// # What is repaired
//
// Some system calls (epoll_wait, semop, sigtimedwait, receive with a timeout, …) return EINTR at
// any stop, also one that carries no signal. Before a thread is let go, such a
// return is turned into ERESTARTNOHAND, so that the kernel starts the call again
// unless a handler really runs. See Regs.hideInterrupt.
package ptrace
