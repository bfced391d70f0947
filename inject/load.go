package inject

import (
	"bytes"
	"debug/elf"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
)

// Library is a shared object that was loaded into the target.
type Library struct {
	Handle uint64 // what dlopen returned
	Bias   uint64 // load bias: address in the target minus address in the file
	Lo, Hi uint64 // its mappings

	init      uint64 // DT_INIT, link-time address, 0 if none
	initArray uint64 // DT_INIT_ARRAY
	initCount uint64
}

// memfdPrefix begins the name of the file in memory from which a patch library
// is mapped. /proc/PID/maps shows it, so that everybody sees what it is.
const memfdPrefix = "hotpatch:"

// Load brings a shared object into the target: its bytes go through a file in
// memory, so that no file system, namespace or permission of the target
// matters. name is for people who look at /proc/PID/maps; serial must be another
// one at every load in the life of the process: the loader recognises a library
// by the spelling of its path.
//
// Its constructors have not run when Load returns: Construct runs them. So
// pointers can be filled in first, and no code of the patch runs under the
// loader's lock.
//
// Faults: "dlopen" (Unfit, with the loader's own text), "no-proc", "thread-locals".
func (a *Agent) Load(name string, data []byte, serial uint64) (*Library, error) {
	return a.load(name, data, serial, 0, 0)
}

// load is Load for a library whose link-time addresses are to grow by a number of
// bytes, so that the loader maps it there; see rebase. Or, if at is not 0, the
// loader is made to map it at that address; see steer.
func (a *Agent) load(name string, data []byte, serial, by, at uint64) (lib *Library, err error) {
	image, err := elfsym.NewImage(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	if why := a.l.NoThreadLocals(); why != "" && hasTLS(image) {
		return nil, &fault.Error{
			Kind: fault.Unfit, Code: "thread-locals", What: "cannot load " + name,
			Why:  "it has thread-local variables, and " + why,
			Hint: "build the patch without thread_local variables of its own",
		}
	}
	if a.l.libc.pthreadCreate == 0 {
		if err := a.l.withoutThreads(name, image.Needed()); err != nil {
			return nil, err
		}
	}
	data = bytes.Clone(data)
	lib = &Library{}
	if err := deferConstructors(image, data, lib); err != nil {
		return nil, err
	}
	if by != 0 {
		if err := rebase(image, data, by); err != nil {
			return nil, err
		}
	}
	if err := a.prepareLoader(); err != nil {
		return nil, err
	}

	if err := a.separate(image); err != nil {
		return nil, err
	}
	fd, path, err := a.deliver(name, data, serial)
	if err != nil {
		return nil, err
	}
	defer fd.file.Close()

	pathAt, err := a.text(0, path)
	if err != nil {
		return nil, err
	}
	// From here on the agent takes everything back if hotpatch dies.
	resultAt := a.l.region.data() + dCalls + callResult
	if err := a.l.mem.WriteAt(make([]byte, 8), resultAt); err != nil {
		return nil, err
	}
	closing, err := a.closeIfOurs(fd, a.l.region.data()+dAbandonCalls, 1)
	if err != nil {
		return nil, err
	}
	err = a.OnAbandon(append([]Call{{Fn: a.l.libc.dlclose, Args: [6]uint64{resultAt}, Deref: 1, If: resultAt}}, closing...)...)
	if err != nil {
		return nil, err
	}
	open := Call{Fn: a.l.libc.dlopen, Args: [6]uint64{pathAt, rtldNow}}
	var res []uint64
	if at != 0 {
		res, err = a.steer(open, &fd.id, at)
	} else {
		res, err = a.Do(open)
	}
	if err != nil {
		return nil, err
	}
	lib.Handle = res[0]
	if lib.Handle == 0 {
		why := strings.ReplaceAll(a.loaderError(), path, name)
		if err := a.unmapRests(&fd.id); err != nil {
			return nil, err
		}
		if !a.holds(fd) {
			return nil, a.closedMeanwhile(int64(fd.fd))
		}
		if cerr := a.closeDelivered(fd); cerr != nil {
			return nil, cerr
		}
		kind := fault.Unfit
		if strings.Contains(why, "Too many open files") || strings.Contains(why, "annot allocate memory") {
			kind = fault.Failed // the process has none left: that is not the patch's fault
		}
		return nil, &fault.Error{
			Kind: kind, Code: "dlopen", What: "cannot load " + name,
			Where: fmt.Sprintf("process %d", a.l.proc.PID()), Why: why,
			Hint: hintFor(why),
		}
	}
	unload := Call{Fn: a.l.libc.dlclose, Args: [6]uint64{lib.Handle}}
	if err := a.OnAbandon(append([]Call{unload}, closing...)...); err != nil {
		return nil, err
	}
	if err := a.closeDelivered(fd); err != nil {
		return nil, err
	}
	if err := a.OnAbandon(unload); err != nil {
		return nil, err
	}
	if err := a.locate(lib, image, by, &fd.id); err != nil {
		return nil, err
	}
	return lib, nil
}

// unmapRests unmaps what a loader that has failed has left of the file: glibc 2.36 was seen
// to leave a part of it, in a program that had closed its descriptor meanwhile.
func (a *Agent) unmapRests(file *unix.Stat_t) error {
	maps, err := a.l.proc.Maps()
	if err != nil {
		return err
	}
	for _, m := range maps {
		if mappedFrom(m, file) {
			if err := a.Unmap(m.Start, m.End-m.Start); err != nil {
				return err
			}
		}
	}
	return nil
}

// mappedFrom reports whether a mapping is of a file.
func mappedFrom(m procfs.Map, file *unix.Stat_t) bool {
	return m.Inode == file.Ino && m.DevMajor == unix.Major(file.Dev) && m.DevMinor == unix.Minor(file.Dev)
}

const rtldNow = 2 // RTLD_NOW of <dlfcn.h>; RTLD_LOCAL is 0

// withoutThreads refuses libraries that need one which is not mapped, in a
// program of glibc before 2.34 that has no libpthread. The loader then has no way to wait for other
// threads, and calls a null pointer when it has to change what an already loaded
// library sees; and libpthread itself would take the agent for the main thread.
func (l *Loader) withoutThreads(name string, needed []string) error {
	if n := l.notMapped(needed); n != "" {
		return &fault.Error{
			Kind: fault.Unfit, Code: "new-library", What: "cannot load " + name,
			Why:  fmt.Sprintf("it needs %s, which the program has not loaded, and the program has no thread library (libpthread), without which its C library cannot add others safely", n),
			Hint: "link the patch only with libraries that the program has (-Wl,--as-needed)",
		}
	}
	return nil
}

func hasTLS(im *elfsym.Image) bool {
	for _, s := range im.Segments() {
		if s.Type == elf.PT_TLS {
			return true
		}
	}
	return false
}

// tagNothing is a dynamic tag in the range for operating systems that no loader
// knows, and every loader ignores.
const tagNothing = 0x6000f0f0

// deferConstructors edits the dynamic section of the copy that is delivered, so
// that the loader runs no constructor, and notes in lib where they are.
func deferConstructors(im *elfsym.Image, data []byte, lib *Library) error {
	for _, seg := range im.Segments() {
		if seg.Type != elf.PT_DYNAMIC {
			continue
		}
		if seg.Off > uint64(len(data)) || seg.Filesz > uint64(len(data))-seg.Off {
			return &fault.Error{Kind: fault.Unfit, Code: "patch-truncated", What: "cannot load the patch", Why: "its dynamic section is not within the file"}
		}
		dyn := data[seg.Off : seg.Off+seg.Filesz]
		for ; len(dyn) >= 16; dyn = dyn[16:] {
			value := le.Uint64(dyn[8:])
			switch elf.DynTag(le.Uint64(dyn)) {
			case elf.DT_NULL:
				return nil
			case elf.DT_INIT:
				lib.init = value
				put64(dyn, 0, tagNothing)
			case elf.DT_INIT_ARRAY:
				lib.initArray = value
			case elf.DT_INIT_ARRAYSZ:
				lib.initCount = value / 8
				put64(dyn, 8, 0)
			}
		}
	}
	return nil
}

// prepareLoader sees to it that the target has dlopen: a program of glibc before
// 2.34 that was not linked with libdl gets that library first.
func (a *Agent) prepareLoader() error {
	l := a.l
	if l.libc.dlopen != 0 && l.libc.dlerror != 0 && l.libc.dlclose != 0 {
		return nil
	}
	at, err := a.text(0, "libdl.so.2")
	if err != nil {
		return err
	}
	const rtldDlopen = 0x80000000 // __RTLD_DLOPEN
	res, err := a.Do(Call{Fn: l.libc.dlopenMode, Args: [6]uint64{at, rtldNow | rtldDlopen}})
	if err != nil {
		return err
	}
	if res[0] == 0 {
		return unknownLibc(l.libc.name, "the program has no libdl, and loading libdl.so.2 failed")
	}
	space, err := elfsym.Read(l.proc)
	if err != nil {
		return err
	}
	defer space.Close()
	before := l.libc
	if l.libc, err = findLibc(space); err != nil {
		return err
	}
	// libdl does not bring a thread library; stay with what was chosen.
	l.libc.pthreadCreate = before.pthreadCreate
	if l.libc.dlopen == 0 || l.libc.dlerror == 0 || l.libc.dlclose == 0 {
		return unknownLibc(l.libc.name, "libdl.so.2 lacks dlopen, dlerror or dlclose")
	}
	return nil
}

// text puts a string into the scratch area and gives its address.
func (a *Agent) text(off uint64, s string) (uint64, error) {
	at := a.l.region.Base + scratchOffset + off
	return at, a.l.mem.WriteAt(append([]byte(s), 0), at)
}

// loaderError gives the text of dlerror.
func (a *Agent) loaderError() string {
	res, err := a.Do(Call{Fn: a.l.libc.dlerror})
	if err != nil || res[0] == 0 {
		return "the loader does not say why"
	}
	s, err := ReadString(a.l.mem, res[0], 4096)
	if err != nil {
		return "the loader's message cannot be read"
	}
	return s
}

// ReadString reads a string that ends with a zero byte, at most limit bytes of it.
func ReadString(mem procfs.Memory, addr uint64, limit int) (string, error) {
	var s []byte
	for len(s) < limit {
		// Do not read across a page border that may be the end of the mapping.
		n := min(int(0x100-addr%0x100), limit-len(s))
		b := make([]byte, n)
		if err := mem.ReadAt(b, addr); err != nil {
			return "", err
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(append(s, b[:i]...)), nil
		}
		s = append(s, b...)
		addr += uint64(n)
	}
	return string(s), nil
}

func hintFor(why string) string {
	switch {
	case strings.Contains(why, "undefined symbol"), strings.Contains(why, "symbol not found"):
		return "the patch refers to a symbol that the process does not export; static functions and variables need HOTPATCH_REF (include/hotpatch.h)"
	case strings.Contains(why, "Too many open files"):
		return "the process has no file descriptor left (RLIMIT_NOFILE)"
	case strings.Contains(why, "annot allocate memory"):
		return "the process has no memory left (RLIMIT_AS, a memory cgroup)"
	case strings.Contains(why, "cannot open shared object file"), strings.Contains(why, "Error loading shared library"):
		return "the patch needs a library that the process cannot find"
	case strings.Contains(why, "version `"):
		return "the patch was built against a newer library than the process has"
	case strings.Contains(why, "static TLS"):
		return "build the patch with -fPIC and without -ftls-model=initial-exec"
	}
	return ""
}

// locate finds where a library was mapped, by the file in memory that it was
// mapped from, and compares with what the loader says, for which all addresses
// of the file have grown by a number of bytes.
func (a *Agent) locate(lib *Library, im *elfsym.Image, by uint64, st *unix.Stat_t) error {
	maps, err := a.l.proc.Maps()
	if err != nil {
		return err
	}
	for _, m := range maps {
		if !mappedFrom(m, st) {
			continue
		}
		if lib.Lo == 0 {
			lib.Lo = m.Start
		}
		lib.Hi = m.End
	}
	first := uint64(0)
	for _, seg := range im.Segments() {
		if seg.Type == elf.PT_LOAD {
			first = seg.Vaddr &^ 0xfff
			// memory without file content (.bss) belongs to it too
			lib.Hi = max(lib.Hi, lib.Lo-first+(seg.Vaddr+seg.Memsz+0xfff)&^0xfff)
			break
		}
	}
	bias, err := read64(a.l.mem, lib.Handle) // l_addr, the first member of struct link_map
	if err != nil {
		return err
	}
	lib.Bias = bias + by
	if lib.Lo == 0 || lib.Bias != lib.Lo-first {
		return &fault.Error{
			Kind: fault.Failed, Code: "library-lost", What: "cannot find the patch library in the process",
			Why: fmt.Sprintf("the loader says load bias %#x, the mappings begin at %#x", lib.Bias, lib.Lo),
		}
	}
	for _, seg := range im.Segments() {
		if seg.Type == elf.PT_LOAD {
			lib.Hi = max(lib.Hi, lib.Bias+(seg.Vaddr+seg.Memsz+0xfff)&^0xfff)
		}
	}
	return nil
}

// OnAbandon says what the agent does when nobody asks it for anything any more.
func (a *Agent) OnAbandon(calls ...Call) error {
	a.abandon = calls
	b := make([]byte, callSize*(len(calls)+1))
	// The end mark first, then from the last call to the first: the list is
	// valid at every moment.
	for i := len(calls) - 1; i >= 0; i-- {
		calls[i].encode(b[callSize*i:])
	}
	at := a.l.region.data() + dAbandonCalls
	if err := a.l.mem.WriteAt(make([]byte, 8), at); err != nil {
		return err
	}
	if err := a.l.mem.WriteAt(b[8:], at+8); err != nil {
		return err
	}
	return a.l.mem.WriteAt(b[:8], at)
}

// Unload closes a library. It reports whether the loader really unmapped it.
func (a *Agent) Unload(lib *Library) (unmapped bool, err error) {
	if err := a.OnAbandon(); err != nil {
		return false, err
	}
	if _, err := a.Do(Call{Fn: a.l.libc.dlclose, Args: [6]uint64{lib.Handle}}); err != nil {
		return false, err
	}
	maps, err := a.l.proc.Maps()
	if err != nil {
		return false, err
	}
	for _, m := range maps {
		if m.Start < lib.Hi && lib.Lo < m.End {
			return false, nil
		}
	}
	return true, nil
}
