package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// OpenRel opens any file below /proc/PID, such as "fd/7"; flags are those of
// open(2), O_CLOEXEC is added. It follows the kernel's links to whatever they
// point to: use OpenMapped or OpenInRoot for files that the process chose.
func (p *Proc) OpenRel(name string, flags int) (*os.File, error) {
	fd, err := p.openat(name, flags)
	if err != nil {
		return nil, p.openFault("open "+name, name, err)
	}
	return os.NewFile(uintptr(fd), "/proc/"+strconv.Itoa(p.pid)+"/"+name), nil
}

// OpenMapped opens, for reading, the very file that a mapping maps, also if it
// has been deleted or replaced since, through /proc/PID/map_files. That needs
// CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE (fault "permission-denied"). A mapping
// that is gone or was never of a file gives "not-mapped"; one that is not of a
// regular file, "not-a-regular-file".
func (p *Proc) OpenMapped(m Map) (*os.File, error) {
	name := fmt.Sprintf("map_files/%x-%x", m.Start, m.End)
	fd, err := p.openat(name, unix.O_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		fd, err = p.openMappedByThread(name)
	}
	if err != nil {
		return nil, p.openFault("open the mapped file "+m.Path, name, err)
	}
	return p.reopen(fd, m.Path)
}

// openMappedByThread looks into the map_files directory of another thread, for
// processes whose main thread has ended. map_files exists only directly below
// /proc/TID, not in the task directory. The thread is ours if its Tgid is: our
// number cannot be given away while the process that holds it exists.
func (p *Proc) openMappedByThread(name string) (int, error) {
	tids, err := p.Tasks()
	if err != nil {
		return -1, err
	}
	for _, tid := range tids {
		if tid == p.pid {
			continue
		}
		t := &Proc{pid: tid}
		t.fd, err = retry(func() (int, error) {
			return unix.Open("/proc/"+strconv.Itoa(tid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			continue
		}
		fd := -1
		if st, serr := t.Status(0); serr == nil && st.Tgid == p.pid {
			if fd, err = t.openat(name, unix.O_PATH); err == nil {
				if _, alive := p.Status(0); alive != nil {
					unix.Close(fd)
					fd, err = -1, unix.ESRCH
				}
			}
		}
		unix.Close(t.fd)
		if fd >= 0 {
			return fd, nil
		}
	}
	return -1, unix.ENOENT
}

// OpenInRoot opens, for reading, the regular file that path means to the
// process: links and ".." stay within its root directory (chroot, container).
// Nothing but a regular file is opened, so that a FIFO or a device in the
// place of a library does no harm. Faults: "no-such-file",
// "not-a-regular-file", "permission-denied".
func (p *Proc) OpenInRoot(path string) (*os.File, error) {
	root := -1
	err := p.live(func(dir string) (err error) {
		root, err = p.openat(dir+"root", unix.O_PATH|unix.O_DIRECTORY)
		return err
	})
	if err != nil {
		return nil, p.openFault("open the root directory", "root", err)
	}
	defer unix.Close(root)
	fd, err := openBeneath(root, path)
	if err != nil {
		return nil, p.openFault("open "+path, path, err)
	}
	return p.reopen(fd, path)
}

// openBeneath gives an O_PATH descriptor of path with root as the root
// directory: openat2(2) from Linux 5.6 on, else a walk of our own.
func openBeneath(root int, path string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	// EAGAIN: a rename happened during the walk, and the kernel cannot tell
	// whether a ".." left the root.
	for try := 0; try < 100; try++ {
		fd, err := retry(func() (int, error) { return unix.Openat2(root, path, &how) })
		if err == nil || !errors.Is(err, unix.EAGAIN) {
			if errors.Is(err, unix.ENOSYS) {
				return walkBeneath(root, path)
			}
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// walkBeneath resolves path one component at a time, so that links and ".."
// cannot leave root.
func walkBeneath(root int, name string) (int, error) {
	const maxLinks = 40 // as the kernel, path_resolution(7)
	links := 0
	rest := strings.Split(name, "/")
	var trail []int // open directories below root, innermost last
	top := func() int {
		if len(trail) == 0 {
			return root
		}
		return trail[len(trail)-1]
	}
	pop := func() {
		unix.Close(top())
		trail = trail[:len(trail)-1]
	}
	defer func() {
		for len(trail) > 0 {
			pop()
		}
	}()
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(trail) > 0 {
				pop()
			}
			continue
		}
		fd, err := retry(func() (int, error) {
			return unix.Openat(top(), part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return -1, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return -1, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			trail = append(trail, fd)
			continue
		}
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		if links++; links > maxLinks {
			return -1, unix.ELOOP
		}
		target := string(buf[:n])
		if path.IsAbs(target) {
			for len(trail) > 0 {
				pop()
			}
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return retry(func() (int, error) { return unix.FcntlInt(uintptr(top()), unix.F_DUPFD_CLOEXEC, 0) })
}

// reopen turns an O_PATH descriptor, which it closes, into a readable file if
// it is a regular file. Opening a path only cannot have an effect on it.
func (p *Proc) reopen(fd int, name string) (*os.File, error) {
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, p.openFault("examine "+name, name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &fault.Error{
			Kind: fault.NoAccess, Code: "not-a-regular-file",
			What: "cannot read " + name, Where: fmt.Sprintf("process %d", p.pid),
			Why: fmt.Sprintf("it is not a regular file (mode %#o)", st.Mode),
		}
	}
	again, err := retry(func() (int, error) {
		return unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	})
	if err != nil {
		return nil, p.openFault("open "+name, name, err)
	}
	return os.NewFile(uintptr(again), name), nil
}

// openFault is fault for files whose absence does not mean that the process is
// gone.
func (p *Proc) openFault(what, name string, err error) error {
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
		return p.fault(what, 0, err)
	}
	if unix.Faccessat(p.fd, "status", unix.F_OK, 0) != nil {
		return gone(p.pid, unix.ESRCH)
	}
	code, why := "no-such-file", "there is no such file"
	if strings.HasPrefix(name, "map_files/") {
		code, why = "not-mapped", "nothing of a file is mapped there"
	}
	return &fault.Error{
		Kind: fault.NoAccess, Code: code, What: fmt.Sprintf("cannot %s of process %d", what, p.pid), Where: name, Why: why,
		Err: &fs.PathError{Op: "open", Path: name, Err: err},
	}
}
