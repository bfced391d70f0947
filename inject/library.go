package inject

import (
	"debug/elf"
	"strings"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
)

// libc is what the target's C library offers: addresses in the target.
type libc struct {
	musl bool
	name string // for messages: the module's name

	dlopen, dlclose, dlerror uint64
	// dlopenMode is __libc_dlopen_mode of glibc before 2.34, the only way to
	// load anything into a program that has no libdl.
	dlopenMode uint64
	// pthreadCreate is 0 where no thread library is mapped (glibc before 2.34,
	// program not linked with libpthread).
	pthreadCreate, pthreadDetach, pthreadSelf uint64
	// For the size of the agent's stack. Left alone in musl, whose default does, and
	// whose pthread_attr_init takes a lock.
	attrInit, attrSetStack uint64
	memmem                 uint64 // compares, and gives 0 unless equal; 0: there is none
	// For the worker that is the agent itself: what pthread_create would do.
	// Private interfaces of glibc, the same from 2.31 to 2.33.
	uselocale, ctypeInit, allocateTLS, deallocateTLS uint64

	// tidOffset is where the thread control block holds the thread's id.
	tidOffset uint64
}

// Offsets in the thread control block. glibc: struct pthread, whose id has been
// at 0x2d0 from 2.2 to 2.41; musl 1.2: struct pthread. Both are compared with a
// live thread before use.
const (
	glibcTID        = 0x2d0
	glibcMultiple   = 0x18
	glibcStackGuard = 0x28
	glibcPtrGuard   = 0x30
	muslTID         = 0x30
	muslCopyEnd     = 0xc8
)

// libraryRole is what a module is to a program as far as its SONAME tells.
func libraryRole(m *elfsym.Module) (role string) {
	if m.Image == nil || m.Ours {
		return ""
	}
	switch so := m.Image.Soname(); {
	case so == "libc.so.6":
		return "glibc"
	case so == "libpthread.so.0":
		return "pthread"
	case so == "libdl.so.2":
		return "dl"
	case so == "ld-linux-x86-64.so.2":
		return "ld"
	case strings.HasPrefix(so, "libc.musl-"), strings.HasPrefix(m.Name, "ld-musl-"):
		return "musl"
	case so == "libc.so" || so == "" && m.Name == "libc.so":
		return "musl"
	}
	return ""
}

// findLibc looks for the C library among the modules. Faults of kind NoAccess:
// "static-executable", "unknown-libc".
func findLibc(space *elfsym.Space) (*libc, error) {
	roles := make(map[*elfsym.Module]string)
	c := &libc{}
	for _, m := range space.Modules {
		r := libraryRole(m)
		if r == "" {
			continue
		}
		roles[m] = r
		switch r {
		case "glibc":
			c.name, c.tidOffset = m.Name, glibcTID
		case "musl":
			if c.name == "" {
				c.name, c.musl, c.tidOffset = m.Name, true, muslTID
			}
		}
	}
	if c.name == "" {
		return nil, noLibc(space)
	}
	slots := map[string]*uint64{
		"dlopen": &c.dlopen, "dlclose": &c.dlclose, "dlerror": &c.dlerror,
		"__libc_dlopen_mode": &c.dlopenMode,
		"pthread_create":     &c.pthreadCreate, "pthread_detach": &c.pthreadDetach, "pthread_self": &c.pthreadSelf,
		"pthread_attr_init": &c.attrInit, "pthread_attr_setstacksize": &c.attrSetStack,
		"memmem":    &c.memmem,
		"uselocale": &c.uselocale, "__ctype_init": &c.ctypeInit,
		"_dl_allocate_tls": &c.allocateTLS, "_dl_deallocate_tls": &c.deallocateTLS,
	}
	names := make([]string, 0, len(slots))
	for n := range slots {
		names = append(names, n)
	}
	found, err := space.Exports(names, func(m *elfsym.Module) bool { return roles[m] != "" })
	if err != nil {
		return nil, err
	}
	for name, slot := range slots {
		best := 0
		for _, s := range found[name] {
			role := roles[s.Module]
			if role == "" || s.Type != elf.STT_FUNC || s.Bind == elf.STB_LOCAL {
				continue
			}
			// Before 2.34 libc.so.6 has stubs of some thread functions that
			// forward to libpthread: the real ones come first.
			rank := 1
			if role == "pthread" || role == "dl" {
				rank = 3
			}
			if !s.Hidden {
				rank++
			}
			if rank > best {
				best, *slot = rank, s.Addr
			}
		}
	}
	if c.pthreadCreate == 0 || c.pthreadDetach == 0 || c.pthreadSelf == 0 {
		c.pthreadCreate = 0
		if c.uselocale == 0 || c.ctypeInit == 0 || c.allocateTLS == 0 || c.deallocateTLS == 0 {
			return nil, unknownLibc(c.name, "it has no pthread_create, and not what could stand in for it")
		}
	}
	if !c.musl && c.uselocale == 0 {
		return nil, unknownLibc(c.name, "it has no uselocale")
	}
	if c.dlopen == 0 && c.dlopenMode == 0 {
		return nil, unknownLibc(c.name, "it has neither dlopen nor __libc_dlopen_mode")
	}
	return c, nil
}

func unknownLibc(name, why string) error {
	return &fault.Error{
		Kind: fault.NoAccess, Code: "unknown-libc",
		What: "cannot load a library into the process", Where: name, Why: why,
		Hint: "glibc 2.31 and later and musl 1.2 are known",
	}
}

func noLibc(space *elfsym.Space) error {
	if exe := space.Executable(); exe != nil && exe.Image != nil && exe.Image.Interp() == "" {
		return &fault.Error{
			Kind: fault.NoAccess, Code: "static-executable",
			What: "cannot load a library into the process", Where: exe.Path,
			Why:  "the program is statically linked: there is no dynamic loader in it",
			Hint: "link the program dynamically to make it patchable",
		}
	}
	return unknownLibc("no module", "no C library that hotpatch knows is mapped")
}
