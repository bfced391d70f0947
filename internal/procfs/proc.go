package procfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// Proc is one process, held by an open directory /proc/PID. It may be used from
// several goroutines, but not while it is being closed.
type Proc struct {
	dir *os.File
	fd  int
	pid int
}

// Open opens /proc/PID. pid must be the number of a process, not of one of its
// other threads. Faults: "no-such-process", "not-a-process".
func Open(pid int) (*Proc, error) {
	if pid <= 0 {
		return nil, gone(pid, nil)
	}
	path := "/proc/" + strconv.Itoa(pid)
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
			return nil, gone(pid, nil)
		}
		return nil, &fault.Error{Kind: fault.NoAccess, Code: "permission-denied", What: fmt.Sprintf("cannot open process %d", pid), Where: path, Err: err}
	}
	p := &Proc{dir: os.NewFile(uintptr(fd), path), fd: fd, pid: pid}
	// /proc/TID exists for every thread, although it is not listed.
	st, err := p.Status(0)
	if err == nil && st.Tgid != pid {
		err = &fault.Error{
			Kind: fault.NoAccess, Code: "not-a-process",
			What: fmt.Sprintf("cannot work on process %d", pid),
			Why:  fmt.Sprintf("%d is a thread of process %d", pid, st.Tgid),
			Hint: fmt.Sprintf("use --pid %d", st.Tgid),
		}
	}
	if err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close closes the directory, and so releases a lock taken by Lock.
func (p *Proc) Close() error { return p.dir.Close() }

// PID gives the number given to Open.
func (p *Proc) PID() int { return p.pid }

// Lock takes the exclusive lock of this process among all users of this package
// that see it through the same mount of /proc, and keeps it until Close. It is
// a flock(2) on the directory, so that it leaves nothing on disk and ends with
// its holder. If another one has it, wait (which may be nil) is called once, and
// Lock waits until ctx is done: fault "target-locked".
func (p *Proc) Lock(ctx context.Context, wait func()) error {
	const interval = 10 * time.Millisecond
	for waiting := false; ; waiting = true {
		_, err := retry(func() (int, error) { return 0, unix.Flock(p.fd, unix.LOCK_EX|unix.LOCK_NB) })
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return &fault.Error{Kind: fault.Failed, Code: "lock-error", What: fmt.Sprintf("cannot lock process %d", p.pid), Err: err}
		}
		if !waiting && wait != nil {
			wait()
		}
		select {
		case <-ctx.Done():
			return &fault.Error{
				Kind: fault.Busy, Code: "target-locked",
				What: fmt.Sprintf("cannot lock process %d", p.pid),
				Why:  "another hotpatch works on it",
				Hint: "wait until the other one has ended",
				Err:  ctx.Err(),
			}
		case <-time.After(interval):
		}
	}
}

// Tasks lists the ids of the process's threads in ascending order, also those
// that have ended and not been removed yet. Threads come and go: a caller that
// needs all of them repeats this until nothing is new.
func (p *Proc) Tasks() ([]int, error) {
	d, err := p.OpenRel("task", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	tids, err := numbers(d)
	if err != nil {
		return nil, p.fault("list the threads", 0, err)
	}
	if len(tids) == 0 {
		return nil, gone(p.pid, nil)
	}
	return tids, nil
}

// Processes lists the ids of all processes that /proc shows, in ascending order.
func Processes() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, &fault.Error{Kind: fault.Failed, Code: "proc-read", What: "cannot list processes", Err: err}
	}
	defer d.Close()
	pids, err := numbers(d)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Failed, Code: "proc-read", What: "cannot list processes", Err: err}
	}
	return pids, nil
}

// numbers gives the entries of a directory that are decimal numbers, sorted.
func numbers(d *os.File) ([]int, error) {
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var list []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil && n > 0 {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}

// Status reads the status of a thread; tid 0 is the process itself (its main
// thread).
func (p *Proc) Status(tid int) (Status, error) {
	data, err := p.read(taskFile(tid, "status"), 1<<20)
	if err != nil {
		return Status{}, p.fault("read the status", tid, err)
	}
	return ParseStatus(data)
}

// Syscall tells what a thread is doing; tid 0 is the main thread. It needs the
// right to trace the process.
func (p *Proc) Syscall(tid int) (Syscall, error) {
	data, err := p.read(taskFile(tid, "syscall"), 1<<16)
	if err != nil {
		return Syscall{}, p.fault("read the system call", tid, err)
	}
	return ParseSyscall(data)
}

// Comm gives a thread's name; tid 0 is the main thread.
func (p *Proc) Comm(tid int) (string, error) {
	data, err := p.read(taskFile(tid, "comm"), 1<<12)
	if err != nil {
		return "", p.fault("read the name", tid, err)
	}
	return strings.TrimSuffix(string(data), "\n"), nil
}

// Exe gives the path of the executable as seen from the reader's root, without
// the kernel's " (deleted)" mark.
func (p *Proc) Exe() (string, error) {
	buf := make([]byte, unix.PathMax)
	var n int
	err := p.live(func(dir string) (err error) {
		n, err = retry(func() (int, error) { return unix.Readlinkat(p.fd, dir+"exe", buf) })
		return err
	})
	if err != nil {
		return "", p.fault("read the executable's path", 0, err)
	}
	return strings.TrimSuffix(string(buf[:n]), deletedMark), nil
}

// Auxv reads the auxiliary vector that the kernel gave the program at its start:
// pairs of 8-byte words, see getauxval(3).
func (p *Proc) Auxv() ([]byte, error) {
	var data []byte
	err := p.live(func(dir string) (err error) {
		data, err = p.read(dir+"auxv", 1<<16)
		if err == nil && len(data) == 0 {
			err = unix.ESRCH
		}
		return err
	})
	if err != nil {
		return nil, p.noMemory("read the auxiliary vector", err)
	}
	return data, nil
}

// Environ reads the environment that the program was started with, as it stands in its
// memory now: NAME=value, without the zero bytes between.
func (p *Proc) Environ() ([][]byte, error) {
	var data []byte
	err := p.live(func(dir string) (err error) {
		data, err = p.read(dir+"environ", 4<<20)
		return err
	})
	if err != nil {
		return nil, p.noMemory("read the environment", err)
	}
	return bytes.Split(data, []byte{0}), nil
}

// StartTime gives the time at which the process started, in clock ticks since
// boot: field 22 of proc_pid_stat(5). A number that is used again for another
// process has another start time.
func (p *Proc) StartTime() (uint64, error) {
	data, err := p.read("stat", 1<<16)
	if err != nil {
		return 0, p.fault("read the start time", 0, err)
	}
	t, err := parseStartTime(data)
	if err != nil {
		return 0, p.fault("read the start time", 0, err)
	}
	return t, nil
}

// parseStartTime finds field 22. Field 2, the name, may hold spaces and
// parentheses, but no field behind it does.
func parseStartTime(data []byte) (uint64, error) {
	i := bytes.LastIndexByte(data, ')')
	f := strings.Fields(string(data[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, errors.New("the stat file has too few fields")
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// Maps reads the mappings of the process. When the main thread has ended they
// are read through another thread. The kernel hands them out page by page
// while the process may change them; a reading that contradicts itself is
// repeated. Faults: "zombie", "kernel-thread", "permission-denied",
// "no-such-process", "damaged-maps".
func (p *Proc) Maps() ([]Map, error) {
	const tries = 10
	var maps []Map
	for try := 1; ; try++ {
		var data []byte
		err := p.live(func(dir string) (err error) {
			data, err = p.read(dir+"maps", 1<<30)
			if err == nil && len(data) == 0 {
				err = unix.ESRCH
			}
			return err
		})
		if err != nil {
			return nil, p.noMemory("read the mappings", err)
		}
		if maps, err = ParseMaps(data); err == nil {
			return maps, nil
		}
		if try == tries {
			return nil, err
		}
	}
}

// ReadMaps reads the text of /proc/PID/maps into buf, which may be nil, and gives it:
// what a survey of all processes begins with. It is empty if the main thread has ended,
// and for threads of the kernel.
func ReadMaps(pid int, buf []byte) ([]byte, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open("/proc/"+strconv.Itoa(pid)+"/maps", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return buf[:0], err
	}
	defer unix.Close(fd)
	for buf = buf[:0]; ; {
		buf = slices.Grow(buf, 32<<10)
		n, err := retry(func() (int, error) { return unix.Read(fd, buf[len(buf):cap(buf)]) })
		if err != nil || n == 0 {
			return buf, err
		}
		buf = buf[:len(buf)+n]
	}
}

// Mem opens the memory of the process, through a live thread. It needs the
// right to trace the process. Faults as for Maps.
func (p *Proc) Mem(write bool) (*Mem, error) {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	var m *Mem
	err := p.live(func(dir string) error {
		fd, err := p.openat(dir+"mem", flags)
		if err != nil {
			return err
		}
		m = &Mem{f: os.NewFile(uintptr(fd), "/proc/"+strconv.Itoa(p.pid)+"/mem"), fd: fd, pid: p.pid}
		return nil
	})
	if err != nil {
		return nil, p.noMemory("open the memory", err)
	}
	return m, nil
}

// live calls f with the prefix of a directory ("" or "task/TID/") in which the
// files that belong to the address space work: the process's own, or, if f says
// that it has none any more, that of each live thread.
func (p *Proc) live(f func(dir string) error) error {
	err := f("")
	if err == nil || !(errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT)) {
		return err
	}
	tids, terr := p.Tasks()
	if terr != nil {
		return err
	}
	for _, tid := range tids {
		if st, serr := p.Status(tid); serr != nil || st.Dead() {
			continue
		}
		if terr := f("task/" + strconv.Itoa(tid) + "/"); terr == nil {
			return nil
		} else if !(errors.Is(terr, unix.ESRCH) || errors.Is(terr, unix.ENOENT)) {
			return terr
		}
	}
	return err
}

// noMemory explains why a process has no readable address space.
func (p *Proc) noMemory(what string, err error) error {
	if st, serr := p.Status(0); serr == nil && (errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT)) {
		e := &fault.Error{Kind: fault.NoAccess, What: fmt.Sprintf("cannot %s of process %d", what, p.pid), Where: st.Name}
		switch {
		case st.Kthread:
			e.Code, e.Why = "kernel-thread", "it is a kernel thread and has no program of its own"
			return e
		case st.Dead():
			e.Code, e.Why = "zombie", "it has ended and waits for its parent to take notice"
			return e
		}
	}
	return p.fault(what, 0, err)
}

func taskFile(tid int, name string) string {
	if tid == 0 {
		return name
	}
	return "task/" + strconv.Itoa(tid) + "/" + name
}

// read reads a whole file below /proc/PID, of at most max bytes.
func (p *Proc) read(name string, max int) ([]byte, error) {
	fd, err := p.openat(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 16<<10)
	for {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, cap(buf))
		}
		n, err := retry(func() (int, error) { return unix.Read(fd, buf[len(buf):cap(buf)]) })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return buf, nil
		}
		if buf = buf[:len(buf)+n]; len(buf) > max {
			return nil, fmt.Errorf("%s is longer than %d bytes: %w", name, max, io.ErrShortBuffer)
		}
	}
}

func (p *Proc) openat(name string, flags int) (int, error) {
	return retry(func() (int, error) { return unix.Openat(p.fd, name, flags|unix.O_CLOEXEC, 0) })
}

// retry repeats a system call that a signal interrupted.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

func gone(pid int, err error) *fault.Error {
	return &fault.Error{Kind: fault.NoAccess, Code: "no-such-process", What: fmt.Sprintf("cannot work on process %d", pid), Why: "there is no such process", Err: err}
}

// fault turns an errno of a file below /proc/PID into a refusal. The errno stays
// in the tree, so that callers can test for unix.ESRCH. A thread or process that
// has gone is always ESRCH.
func (p *Proc) fault(what string, tid int, err error) error {
	where := ""
	if tid != 0 {
		where = fmt.Sprintf("thread %d", tid)
	}
	var e *fault.Error
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
		if tid == 0 || unix.Faccessat(p.fd, "status", unix.F_OK, 0) != nil {
			return gone(p.pid, unix.ESRCH)
		}
		return &fault.Error{Kind: fault.NoAccess, Code: "no-such-thread", What: fmt.Sprintf("cannot %s of process %d", what, p.pid), Where: where, Why: "the thread has ended", Err: unix.ESRCH}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &fault.Error{
			Kind: fault.NoAccess, Code: "permission-denied",
			What: fmt.Sprintf("cannot %s of process %d", what, p.pid), Where: where,
			Why:  "the kernel does not allow it",
			Hint: "run hotpatch as root, or with CAP_SYS_PTRACE in the process's user namespace",
			Err:  err,
		}
	}
	return &fault.Error{Kind: fault.Failed, Code: "proc-read", What: fmt.Sprintf("cannot %s of process %d", what, p.pid), Where: where, Err: err}
}
