package elfsym

import (
	"debug/elf"
	"path"
	"slices"
	"strings"

	"hotpatch/internal/procfs"
)

// Kind says what sort of image a module is.
type Kind int

// The kinds of modules.
const (
	Executable Kind = iota // the program that the kernel started
	Library                // anything else from a file, the dynamic linker included
	VDSO                   // the kernel's own shared object
)

// String gives the kind in one word.
func (k Kind) String() string {
	switch k {
	case Executable:
		return "executable"
	case Library:
		return "library"
	case VDSO:
		return "vdso"
	}
	return "unknown"
}

// Module is one ELF image as it is mapped in one process.
type Module struct {
	Name    string // base name of Path; "[vdso]" for the vDSO
	Path    string // as in /proc/PID/maps: the reader's view, without " (deleted)"
	Kind    Kind
	Image   *Image
	BuildID BuildID // of the mapped image, from memory
	Bias    uint64  // runtime address minus link-time address
	Lo, Hi  uint64  // the pages of all segments lie in [Lo, Hi); there may be holes
	Maps    []procfs.Map
	Deleted bool // the file has no name any more
	Ours    bool // a patch library that hotpatch delivered

	// Err says why there is no Image, or only one from memory (then
	// Image.FromMemory is true): the mapped file cannot be read.
	Err error

	debug *debugInfo
	code  *codeIndex

	derived   *derived
	mentioned map[string]*mentioned // by needle
	searches  int                   // that filled mentioned
	windows   []*codeIndex          // of parts of the code, while code is not there
	frames    *frames
}

// Addr turns a link-time address into a runtime one.
func (m *Module) Addr(vaddr uint64) uint64 { return vaddr + m.Bias }

// Vaddr turns a runtime address into a link-time one.
func (m *Module) Vaddr(addr uint64) uint64 { return addr - m.Bias }

// Contains reports whether the runtime address lies in one of the module's
// segments, counted in whole pages as they are mapped.
func (m *Module) Contains(addr uint64) bool {
	if addr < m.Lo || addr >= m.Hi || m.Image == nil {
		return false
	}
	v := m.Vaddr(addr)
	for _, p := range m.Image.Segments() {
		if p.Type == elf.PT_LOAD && pageFloor(p.Vaddr) <= v && v < pageCeil(p.Vaddr+p.Memsz) {
			return true
		}
	}
	return false
}

// InText reports whether the runtime address lies in an executable segment.
func (m *Module) InText(addr uint64) bool {
	return addr >= m.Lo && addr < m.Hi && m.Image != nil && m.Image.Executable(m.Vaddr(addr))
}

// Soname gives the library's name for itself, or "".
func (m *Module) Soname() string {
	if m.Image == nil {
		return ""
	}
	return m.Image.Soname()
}

// matches reports whether a name in a query means this module: its base name,
// its soname, its path, or the end of its path.
func (m *Module) matches(name string) bool {
	return name == m.Name || name == m.Path || name == m.Soname() ||
		strings.Contains(name, "/") && strings.HasSuffix(m.Path, "/"+strings.TrimPrefix(name, "/"))
}

func pageFloor(a uint64) uint64 { return a &^ (pageSize - 1) }
func pageCeil(a uint64) uint64  { return (a + pageSize - 1) &^ (pageSize - 1) }

// Space is every module of one process at one moment. It is not safe for
// concurrent use.
type Space struct {
	PID     int
	Modules []*Module // in ascending order of address
	Maps    []procfs.Map

	proc      *procfs.Proc
	debugDirs []string
	files     []interface{ Close() error }
}

// Close closes the files of all modules. The Space must not be used any more.
func (s *Space) Close() error {
	var first error
	for _, f := range s.files {
		if err := f.Close(); err != nil && first == nil {
			first = err
		}
	}
	s.files = nil
	return first
}

// ModuleAt gives the module that has the runtime address in one of its
// segments, or nil.
func (s *Space) ModuleAt(addr uint64) *Module {
	// Modules may lie in the holes of others, so that every one that begins
	// below the address has to be asked. There are a few hundred at most.
	for _, m := range slices.Backward(s.Modules) {
		if m.Contains(addr) {
			return m
		}
	}
	return nil
}

// Executable gives the module of the program that the kernel started, or nil if
// its image is not mapped any more.
func (s *Space) Executable() *Module {
	for _, m := range s.Modules {
		if m.Kind == Executable {
			return m
		}
	}
	return nil
}

// MapAt gives the mapping that holds the address.
func (s *Space) MapAt(addr uint64) (procfs.Map, bool) {
	i, ok := slices.BinarySearchFunc(s.Maps, addr, func(m procfs.Map, a uint64) int {
		switch {
		case m.End <= a:
			return -1
		case m.Start > a:
			return 1
		}
		return 0
	})
	if !ok {
		return procfs.Map{}, false
	}
	return s.Maps[i], true
}

// oursPrefix begins the mapped path of every patch library that hotpatch
// delivers (memfd_create(2): "/memfd:" and the name).
const oursPrefix = "/memfd:hotpatch"

func newModule(name string) *Module {
	return &Module{Path: name, Name: path.Base(name), Kind: Library, Ours: strings.HasPrefix(name, oursPrefix)}
}
