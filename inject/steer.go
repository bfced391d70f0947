package inject

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/ptrace"
)

// steer makes a call of dlopen during which the loader's first mmap of a file
// gets an address to begin with, where the loader itself gives none: glibc
// before 2.36 in a position-independent program. Only the agent is stopped, at its
// system calls; if hotpatch is killed meanwhile, it runs on as if nothing were.
func (a *Agent) steer(open Call, file *unix.Stat_t, at uint64) ([]uint64, error) {
	th, err := a.thread()
	if err != nil {
		return nil, err
	}
	if err = a.tracer.Stop(th, a.l.stopLimit); errors.Is(err, ptrace.ErrTimeout) {
		return nil, a.l.late("its thread does not stop")
	}
	if err == nil {
		err = a.ask(false, []Call{open})
	}
	if err == nil {
		err = a.follow(th, file, at)
	}
	if derr := th.Detach(); err == nil && !errors.Is(derr, ptrace.ErrGone) {
		err = derr
	}
	if err != nil {
		return nil, err
	}
	return a.results(1)
}

// follow follows the agent from system call to system call, until it has mapped
// the file or its batch is done.
func (a *Agent) follow(th *ptrace.Thread, file *unix.Stat_t, at uint64) error {
	const atEntry = -int64(unix.ENOSYS) // what the result register has when a system call begins
	deadline := a.deadline
	if deadline.IsZero() {
		deadline = time.Now().Add(a.l.patience)
	}
	for time.Now().Before(deadline) {
		done, err := read64(a.l.mem, a.l.region.data()+dDone)
		if err != nil || done == a.command {
			return err
		}
		switch err := th.NextSyscall(a.l.stopLimit); {
		case errors.Is(err, ptrace.ErrTimeout):
			continue // it waits, for the loader's lock or whatever
		case errors.Is(err, ptrace.ErrGone):
			return nil // await finds out
		case err != nil:
			return err
		}
		r := th.Regs
		if r.OrigRax != sysMmap || int64(r.Rax) != atEntry || !a.isFile(th.TID, r.R8, file) {
			continue
		}
		r.Rdi = at
		th.SetRegs(r)
		return th.Flush()
	}
	return nil // await says that it takes too long
}

// isFile reports whether a descriptor of the target is of a file.
func (a *Agent) isFile(tid int, fd uint64, file *unix.Stat_t) bool {
	f, err := a.l.proc.OpenRel(fmt.Sprintf("task/%d/fd/%d", tid, int32(fd)), unix.O_PATH)
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Dev == file.Dev && st.Ino == file.Ino
}

// thread seizes the agent's thread.
func (a *Agent) thread() (*ptrace.Thread, error) {
	tids, err := a.l.proc.Tasks()
	if err != nil {
		return nil, err
	}
	for _, tid := range tids {
		if a.l.isTID(tid, a.tid) {
			th, err := a.tracer.Seize(tid)
			if errors.Is(err, ptrace.ErrGone) {
				break
			}
			return th, err
		}
	}
	return nil, a.l.noAgent("its thread has ended")
}
