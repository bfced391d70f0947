package elfsym

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
)

// Read finds the modules of a process. It needs the right to read its mappings
// and its memory. p must stay open as long as the Space is used; the Space
// should be closed. debugDirs are searched for separate debug files before
// /usr/lib/debug, each as seen by the caller and laid out like it.
//
// A file mapping is a module if the program headers at its beginning, as they
// are in memory, describe the mappings around it. So a library that somebody has
// mapped as data is none. A module whose file cannot be opened, or is not proven
// to be the mapped one, is read from memory and has Err set.
func Read(p *procfs.Proc, debugDirs ...string) (*Space, error) {
	maps, err := p.Maps()
	if err != nil {
		return nil, err
	}
	mem, err := p.Mem(false)
	if err != nil {
		return nil, err
	}
	s := &Space{PID: p.PID(), Maps: maps, proc: p, debugDirs: debugDirs}
	s.files = append(s.files, mem)
	rd := reader{s: s, p: p, mem: mem, phdr: programHeaders(p)}
	for i := range maps {
		if m := rd.module(i); m != nil {
			s.Modules = append(s.Modules, m)
		}
	}
	slices.SortFunc(s.Modules, func(a, b *Module) int { return cmp.Compare(a.Lo, b.Lo) })
	return s, nil
}

// programHeaders gives the address of the executable's program headers, which
// the kernel tells in the auxiliary vector (getauxval(3), AT_PHDR), or 0.
func programHeaders(p *procfs.Proc) uint64 {
	const atPHDR = 3
	b, err := p.Auxv()
	if err != nil {
		return 0
	}
	for ; len(b) >= 16; b = b[16:] {
		if binary.LittleEndian.Uint64(b) == atPHDR {
			return binary.LittleEndian.Uint64(b[8:])
		}
	}
	return 0
}

type reader struct {
	s    *Space
	p    *procfs.Proc
	mem  *procfs.Mem
	phdr uint64
}

// module looks for a module whose file header is at the start of mapping i.
func (rd *reader) module(i int) *Module {
	at := rd.s.Maps[i]
	if at.Path == "[vdso]" && at.Inode == 0 {
		return rd.vdso(at)
	}
	if at.Inode == 0 || at.Offset != 0 || at.Perm&procfs.Read == 0 {
		return nil
	}
	// The first look is at memory, which cannot be anything but what is mapped.
	var magic [4]byte
	if rd.mem.ReadAt(magic[:], at.Start) != nil || string(magic[:]) != elf.ELFMAG {
		return nil
	}
	head := &mappedFile{mem: rd.mem, maps: []procfs.Map{at}}
	img, err := NewImage(head, 1<<62)
	if err != nil {
		return nil
	}
	first := firstLoad(img)
	if first == nil || pageFloor(first.Off) != 0 {
		return nil
	}
	m := newModule(at.Path)
	m.Deleted = at.Deleted
	m.Bias = at.Start - pageFloor(first.Vaddr)
	if !rd.mapped(m, img, at) {
		return nil
	}
	m.BuildID = rd.buildID(m, img)
	if rd.phdr >= m.Lo && rd.phdr < m.Hi && rd.phdr != 0 {
		m.Kind = Executable
	}
	m.Image, m.Err = rd.open(m, img, at)
	if m.Err != nil {
		m.Image = rd.fromMemory(m, img)
	}
	m.Image.name = m.Path
	return m
}

func firstLoad(im *Image) *elf.ProgHeader { return im.prog(elf.PT_LOAD) }

// mapped fills in what is mapped of m and reports whether all of its segments
// are there: from the same file at the right offset, or without a file where a
// program has moved its text to huge pages. The executable ones must be
// executable.
func (rd *reader) mapped(m *Module, img *Image, at procfs.Map) bool {
	m.Lo, m.Hi = at.Start, at.Start
	for _, p := range img.Segments() {
		if p.Type != elf.PT_LOAD {
			continue
		}
		lo, hi := m.Addr(pageFloor(p.Vaddr)), m.Addr(pageCeil(p.Vaddr+p.Memsz))
		fileHi := m.Addr(pageCeil(p.Vaddr + p.Filesz))
		if hi < lo || lo < m.Lo {
			return false
		}
		m.Hi = max(m.Hi, hi)
		for a := lo; a < fileHi; {
			x, ok := rd.s.MapAt(a)
			if !ok || p.Flags&elf.PF_X != 0 && x.Perm&procfs.Exec == 0 {
				return false
			}
			sameFile := x.Inode == at.Inode && x.DevMajor == at.DevMajor && x.DevMinor == at.DevMinor
			wantOff := pageFloor(p.Off) + (a - lo)
			if sameFile && x.Offset+(a-x.Start) != wantOff || !sameFile && x.Inode != 0 {
				return false
			}
			a = x.End
		}
	}
	for _, x := range rd.s.Maps {
		if x.Start >= m.Hi || x.End <= m.Lo {
			continue
		}
		for _, p := range img.Segments() {
			if p.Type == elf.PT_LOAD && x.Start < m.Addr(pageCeil(p.Vaddr+p.Memsz)) && x.End > m.Addr(pageFloor(p.Vaddr)) {
				m.Maps = append(m.Maps, x)
				break
			}
		}
	}
	return true
}

// buildID reads the build-id note from memory.
func (rd *reader) buildID(m *Module, img *Image) BuildID {
	for _, p := range img.Segments() {
		if p.Type != elf.PT_NOTE || p.Filesz > maxSmall || img.segment(p.Vaddr) == nil {
			continue
		}
		b := make([]byte, p.Filesz)
		if rd.mem.ReadAt(b, m.Addr(p.Vaddr)) != nil {
			continue
		}
		if id := findBuildID(b, p.Align); id != nil {
			return id
		}
	}
	return nil
}

// open opens the mapped file: through map_files, else by its path within the
// process's root, else by its plain path. The error says why none was taken.
func (rd *reader) open(m *Module, head *Image, at procfs.Map) (*Image, error) {
	ways := []struct {
		name  string
		open  func() (*os.File, error)
		exact bool // it cannot be another file
	}{
		{"through map_files", func() (*os.File, error) { return rd.p.OpenMapped(at) }, true},
		{"below the process's root", func() (*os.File, error) { return rd.p.OpenInRoot(at.Path) }, false},
		{"by its path", func() (*os.File, error) { return openRegular(at.Path) }, false},
	}
	var why []string
	for _, w := range ways {
		if !w.exact && !strings.HasPrefix(at.Path, "/") {
			continue
		}
		f, err := w.open()
		if err == nil {
			var img *Image
			if img, err = rd.check(f, m, head, at, w.exact); err == nil {
				rd.s.files = append(rd.s.files, f)
				return img, nil
			}
			f.Close()
		}
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
			return nil, &fault.Error{Kind: fault.Failed, Code: "no-descriptors", What: "cannot read the file of a mapped module", Where: at.Path, Err: err,
				Why: "hotpatch itself may open no more files", Hint: "raise its limit (ulimit -n)"}
		}
		why = append(why, w.name+": "+reason(err))
	}
	return nil, &fault.Error{
		Kind: fault.NoAccess, Code: "module-unreadable",
		What: "cannot read the file of a mapped module", Where: at.Path, Why: strings.Join(why, "; "),
		Hint: "run hotpatch as root; then it reads the mapped file even if its name is gone",
	}
}

// check proves that f is the mapped file, and opens it as an image.
func (rd *reader) check(f *os.File, m *Module, head *Image, at procfs.Map, exact bool) (*Image, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if !exact && (unix.Major(st.Dev) != at.DevMajor || unix.Minor(st.Dev) != at.DevMinor || st.Ino != at.Inode) {
		return nil, fmt.Errorf("it is another file than the mapped one (device and inode %d:%d %d, mapped %d:%d %d)",
			unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino, at.DevMajor, at.DevMinor, at.Inode)
	}
	img, err := NewImage(f, st.Size)
	if err != nil {
		return nil, err
	}
	if id := img.BuildID(); !bytes.Equal(id, m.BuildID) {
		return nil, fmt.Errorf("its build-id is %q, the mapped one is %q", id, m.BuildID)
	}
	if img.Type() != head.Type() || !slices.Equal(img.Segments(), head.Segments()) {
		return nil, errors.New("its program headers are not the mapped ones")
	}
	return img, nil
}

// reason gives the short text of an error.
func reason(err error) string {
	var e *fault.Error
	if errors.As(err, &e) && e.Why != "" {
		return e.Why
	}
	return err.Error()
}

// openRegular opens a regular file by its path in our own view.
func openRegular(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, &os.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	return f, nil
}

// fromMemory makes an image of what is mapped. Its sections are mostly not, but
// what the dynamic linker needs is.
func (rd *reader) fromMemory(m *Module, head *Image) *Image {
	img := *head
	img.r = &mappedImage{mem: rd.mem, bias: m.Bias, segs: head.Segments()}
	img.fromMemory, img.memBias = true, m.Bias
	img.shoff, img.shnum, img.shstrndx = 0, 0, 0
	img.secs = nil
	return &img
}

// vdso makes the module of the vDSO, which is mapped as a whole file.
func (rd *reader) vdso(at procfs.Map) *Module {
	const most = 1 << 20
	if at.End-at.Start > most {
		return nil
	}
	b := make([]byte, at.End-at.Start)
	if rd.mem.ReadAt(b, at.Start) != nil {
		return nil
	}
	img, err := NewImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil
	}
	first := firstLoad(img)
	if first == nil || first.Off != 0 {
		return nil
	}
	img.name = at.Path
	m := newModule(at.Path)
	m.Kind, m.Image, m.BuildID = VDSO, img, img.BuildID()
	m.Bias = at.Start - pageFloor(first.Vaddr)
	m.Lo, m.Hi, m.Maps = at.Start, at.End, []procfs.Map{at}
	return m
}

// mappedFile reads file offsets from the mappings of the file.
type mappedFile struct {
	mem  procfs.Memory
	maps []procfs.Map
}

// ReadAt implements io.ReaderAt.
func (f *mappedFile) ReadAt(b []byte, off int64) (int, error) {
	for _, m := range f.maps {
		if o := uint64(off); o >= m.Offset && o-m.Offset <= m.End-m.Start && uint64(len(b)) <= m.End-m.Start-(o-m.Offset) {
			if err := f.mem.ReadAt(b, m.Start+(o-m.Offset)); err != nil {
				return 0, err
			}
			return len(b), nil
		}
	}
	return 0, io.ErrUnexpectedEOF
}

// mappedImage reads file offsets from the loaded segments.
type mappedImage struct {
	mem  procfs.Memory
	bias uint64
	segs []elf.ProgHeader
}

// ReadAt implements io.ReaderAt.
func (f *mappedImage) ReadAt(b []byte, off int64) (int, error) {
	for _, p := range f.segs {
		if o := uint64(off); p.Type == elf.PT_LOAD && o >= p.Off && o-p.Off <= p.Filesz && uint64(len(b)) <= p.Filesz-(o-p.Off) {
			if err := f.mem.ReadAt(b, f.bias+p.Vaddr+(o-p.Off)); err != nil {
				return 0, err
			}
			return len(b), nil
		}
	}
	return 0, io.ErrUnexpectedEOF
}
