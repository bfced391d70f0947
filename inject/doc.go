// Package inject brings a library into a running process and calls functions
// there, without stopping more than one thread for some tens of microseconds,
// and so that killing hotpatch at any moment leaves the process unharmed.
//
// # The scheme
//
// A thread that is stopped at a random point may hold the allocator's or the
// loader's lock, so it must not call dlopen: that deadlocks or corrupts. It is
// only borrowed for two system calls, and what it executes needs no stack, no
// lock and no help to find its way back:
//
//  1. Bootstrap (once in the life of a process): a stub in the unused tail of
//     libc's last code page maps one region. The stub is erased afterwards.
//  2. Clone: a stub in the region creates a raw thread, the worker, on a stack
//     and a thread control block of the region.
//  3. The worker asks the C library for an ordinary thread (pthread_create) and
//     ends. That thread, the agent, waits in turn for any lock it needs while the
//     whole process runs, and calls what hotpatch asks for: mmap, dlopen, hooks.
//
// Both stubs are entered by one PTRACE_SETREGS followed by PTRACE_DETACH: from
// then on the thread restores itself. When hotpatch dies, the agent notices
// that nobody asks for anything, undoes what it was told to undo, and ends.
//
// # The C libraries
//
// glibc from 2.31 and musl from 1.2 are known. Where a glibc before 2.34 has no
// libpthread mapped, the worker is the agent; see library.go.
//
// # Near
//
// A library can be asked to lie within reach of what it changes (LoadNear). Its
// copy is then moved, as prelink(8) did it, so that the loader maps it there by
// itself (rebase.go); a loader that does not is led (steer.go).
//
// # Contract
//
// Prepare looks and refuses; it touches nothing. Loader.Start must be called
// within ptrace.Run. All addresses are of the target.
package inject
