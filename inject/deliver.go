package inject

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// delivered is a file in memory that the target has open.
type delivered struct {
	file *os.File // opened by us
	id   unix.Stat_t
	fd   uint64 // the target's
}

func (d *delivered) close() Call { return Call{Fn: sysClose, Args: [6]uint64{d.fd}, Syscall: true} }

// Where in the scratch area the target puts what fstat(2) says of the descriptor, and
// where it finds what that must begin with: st_dev and st_ino (struct stat of x86-64).
const (
	statOffset = 0xa00
	fileOffset = 0xb00
)

// closeIfOurs closes the descriptor if it is still of the file that was delivered. The
// target looks and closes within a microsecond: it is the one that may close a descriptor
// that it has not opened, and get the number for a file of its own. table is where the
// calls will be, and first how many others come before them.
func (a *Agent) closeIfOurs(d *delivered, table uint64, first int) ([]Call, error) {
	l := a.l
	if l.libc.memmem == 0 || d.id.Ino == 0 {
		return []Call{d.close()}, nil
	}
	stat, file := l.region.Base+scratchOffset+statOffset, l.region.Base+scratchOffset+fileOffset
	var id [16]byte
	if err := l.mem.WriteAt(id[:], stat); err != nil {
		return nil, err
	}
	put64(id[:], 0, d.id.Dev)
	put64(id[:], 8, d.id.Ino)
	if err := l.mem.WriteAt(id[:], file); err != nil {
		return nil, err
	}
	closing := d.close()
	closing.If = table + uint64(first+1)*callSize + callResult
	return []Call{
		{Fn: sysFstat, Args: [6]uint64{d.fd, stat}, Syscall: true},
		{Fn: l.libc.memmem, Args: [6]uint64{stat, 16, file, 16}},
		closing,
	}, nil
}

const sysReadlink = 89

// deliver makes a file in memory in the target, fills it, and gives the path by
// which the target can open it.
func (a *Agent) deliver(name string, data []byte, serial uint64) (*delivered, string, error) {
	l := a.l
	nameAt, err := a.text(0x800, memfdPrefix+name)
	if err != nil {
		return nil, "", err
	}
	selfAt, err := a.text(0x400, "/proc/thread-self")
	if err != nil {
		return nil, "", err
	}
	const linkMax = 255
	linkAt := l.region.Base + scratchOffset + 0x600
	// Whatever happens to hotpatch, the descriptor is closed: its number is the second
	// result of the batch, which is 0 until then. (The first is that of dlopen, later.)
	fdAt := l.region.data() + dCalls + callSize + callResult
	if err := l.mem.WriteAt(make([]byte, 8), fdAt); err != nil {
		return nil, "", err
	}
	if err := a.OnAbandon(Call{Fn: sysClose, Args: [6]uint64{fdAt}, Deref: 1, If: fdAt, Syscall: true}); err != nil {
		return nil, "", err
	}
	res, err := a.Do(
		Call{Fn: sysReadlink, Args: [6]uint64{selfAt, linkAt, linkMax}, Syscall: true},
		Call{Fn: sysMemfdCreate, Args: [6]uint64{nameAt, unix.MFD_CLOEXEC}, Syscall: true},
	)
	if err != nil {
		return nil, "", err
	}
	link, fd := int64(res[0]), int64(res[1])
	if fd < 0 {
		return nil, "", &fault.Error{
			Kind: fault.Failed, Code: "no-memfd", What: "cannot deliver the patch library",
			Where: fmt.Sprintf("process %d", l.proc.PID()), Why: "memfd_create gives " + unix.Errno(-fd).Error(),
			Hint: "the process may have no file descriptor (RLIMIT_NOFILE) or memory left",
		}
	}
	d := &delivered{fd: uint64(fd)}
	fail := func(err error) (*delivered, string, error) {
		if d.file != nil {
			d.file.Close()
		}
		if cerr := a.closeDelivered(d); cerr != nil {
			return nil, "", cerr
		}
		return nil, "", err
	}
	if d.file, err = a.openMemory(fd, memfdPrefix+name, &d.id); err != nil {
		var closed *fault.Error
		if errors.As(err, &closed) && closed.Code == "descriptor-closed" {
			return nil, "", err // the number is somebody else's
		}
		return fail(err)
	}
	if link <= 0 || link > linkMax {
		return fail(&fault.Error{
			Kind: fault.NoAccess, Code: "no-proc", What: "cannot deliver the patch library",
			Where: fmt.Sprintf("process %d", l.proc.PID()), Why: "the process sees no /proc (a chroot without it)",
			Hint: "mount proc in the root directory of the process",
		})
	}
	self := make([]byte, link)
	if err := l.mem.ReadAt(self, linkAt); err != nil {
		return fail(err)
	}
	if _, err := d.file.WriteAt(data, 0); err != nil {
		return fail(&fault.Error{
			Kind: fault.Failed, Code: "no-memfd", What: "cannot deliver the patch library",
			Where: fmt.Sprintf("process %d", l.proc.PID()), Why: "writing the file in memory: " + plain(err),
			Hint: "the file size limit of hotpatch (ulimit -f), or the memory of the host, may not suffice",
		})
	}
	return d, "/proc/" + string(self) + "/fd" + spell(serial) + fmt.Sprintf("/%d", fd), nil
}

// plain is an error without the path that os.File puts in front of it.
func plain(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

// openMemory opens the file in memory of this name behind a descriptor of the target,
// for writing, and says which it is. A program may have closed the descriptor, as one
// does that closes all which it does not know, and may have been given the number for
// a file of its own: that one is not touched.
func (a *Agent) openMemory(fd int64, name string, id *unix.Stat_t) (*os.File, error) {
	path, err := a.openPath(fd)
	if err != nil {
		return nil, err
	}
	defer path.Close()
	self := fmt.Sprintf("/proc/self/fd/%d", path.Fd())
	link, err := os.Readlink(self)
	if err == nil {
		err = unix.Fstat(int(path.Fd()), id)
	}
	if err != nil {
		return nil, fmt.Errorf("examine descriptor %d of the target: %w", fd, err)
	}
	if link != "/memfd:"+name+" (deleted)" || id.Size != 0 {
		return nil, a.closedMeanwhile(fd)
	}
	return os.OpenFile(self, os.O_RDWR|unix.O_CLOEXEC, 0)
}

// openPath opens what is behind a descriptor of the target, to look at (O_PATH), by way
// of the agent's thread: a main thread that has ended shows none.
func (a *Agent) openPath(fd int64) (*os.File, error) {
	tids, err := a.l.proc.Tasks()
	if err != nil {
		return nil, err
	}
	for _, tid := range slices.Backward(tids) { // new threads come last
		if !a.l.isTID(tid, a.tid) {
			continue
		}
		f, err := a.l.proc.OpenRel(fmt.Sprintf("task/%d/fd/%d", tid, fd), unix.O_PATH)
		var none *fault.Error
		if errors.As(err, &none) && none.Code == "no-such-file" {
			return nil, a.closedMeanwhile(fd)
		}
		return f, err
	}
	return nil, a.l.noAgent("its thread has ended")
}

// closedMeanwhile is the refusal for a program that has closed a descriptor of ours.
func (a *Agent) closedMeanwhile(fd int64) error {
	return &fault.Error{
		Kind: fault.Busy, Code: "descriptor-closed", What: "cannot deliver the patch library",
		Where: fmt.Sprintf("process %d, descriptor %d", a.l.proc.PID(), fd),
		Why:   "the process has closed the descriptor meanwhile, which it had not opened",
		Hint:  "try again, when it does not close descriptors that it does not know",
	}
}

// holds reports whether the target's descriptor is still of the file that was delivered.
func (a *Agent) holds(d *delivered) bool {
	path, err := a.openPath(int64(d.fd))
	if err != nil {
		return false
	}
	defer path.Close()
	var st unix.Stat_t
	return unix.Fstat(int(path.Fd()), &st) == nil && st.Dev == d.id.Dev && st.Ino == d.id.Ino
}

// closeDelivered closes the target's descriptor, unless it is of another file by now.
func (a *Agent) closeDelivered(d *delivered) error {
	calls, err := a.closeIfOurs(d, a.l.region.data()+dCalls, 0)
	if err != nil {
		return err
	}
	_, err = a.Do(calls...)
	return err
}

// spell writes a number as slashes, so that every load has a path of its own
// that names the same file: the loader would take a path that it has seen for the library
// that it has. The path goes through the agent's own thread, which will have
// ended when a debugger tries to open it.
func spell(serial uint64) string {
	var b strings.Builder
	for i := 0; i < 32; i++ {
		if serial>>i&1 == 0 {
			b.WriteString("/")
		} else {
			b.WriteString("/.")
		}
	}
	return b.String()
}
