package inject

import (
	"bytes"
	"debug/elf"
	"fmt"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
)

// beginThreadLocals gives the worker's thread-local variables their first
// values, as the dynamic linker does for any thread: an allocator that keeps its
// state in them (jemalloc) takes zeros for a thread that it knows.
//
// This happens once for each module in the life of the process. All workers are
// one thread to the allocator: what it has linked into its own lists, such as
// the thread's cache, must stay, since no worker ends in a way that would tell it.
//
// Only the static block below the thread pointer matters (ELF Handling for
// Thread-Local Storage, 3.4, variant II): the worker ends before it could use
// anything else.
func (l *Loader) beginThreadLocals() error {
	size := uint64(0x1000) // of alignment, and what libraries that come later are given
	offsets := make(map[*elfsym.Module]uint64)
	for _, m := range l.space.Modules {
		seg, ok := tlsSegment(m)
		if !ok {
			continue
		}
		if size += seg.Memsz + seg.Align; seg.Memsz > maxTLS || size > maxTLS || seg.Filesz > seg.Memsz {
			return largeTLS(m)
		}
		offset, ok, err := l.tlsOffset(m, seg)
		if err != nil {
			return err
		}
		if ok {
			offsets[m] = offset
		}
	}
	for m, offset := range offsets {
		seg, _ := tlsSegment(m)
		at := l.region.Base + tpOffset - offset
		now, first := make([]byte, seg.Memsz), make([]byte, seg.Filesz)
		if err := l.mem.ReadAt(now, at); err != nil {
			return err
		}
		// In memory, where the pointers among them are relocated.
		if err := l.mem.ReadAt(first, m.Addr(seg.Vaddr)); err != nil {
			return err
		}
		if len(bytes.Trim(now, "\x00")) > 0 {
			continue // an earlier worker has begun
		}
		if err := l.mem.WriteAt(first, at); err != nil {
			return err
		}
	}
	return nil
}

// maxTLS is how much room there is below the worker's thread pointer.
const maxTLS = tpOffset - tlsOffset

func largeTLS(m *elfsym.Module) error {
	return &fault.Error{
		Kind: fault.NoAccess, Code: "large-tls", What: "cannot prepare the process", Where: m.Name,
		Why: fmt.Sprintf("with this module, its libraries have more thread-local variables than the %d bytes that hotpatch has room for", maxTLS),
	}
}

func tlsSegment(m *elfsym.Module) (elf.ProgHeader, bool) {
	if m.Image == nil {
		return elf.ProgHeader{}, false
	}
	for _, s := range m.Image.Segments() {
		if s.Type == elf.PT_TLS && s.Memsz > 0 {
			return s, true
		}
	}
	return elf.ProgHeader{}, false
}

// tlsOffset gives how far below the thread pointer the static block of a module
// begins. A module that reaches its variables without a call of __tls_get_addr
// has been told so by the dynamic linker, in the words of its R_X86_64_TPOFF64
// relocations (symbol + addend - offset); for the program, which comes first,
// the static linker has fixed it. Of other modules it is not known and not
// needed.
func (l *Loader) tlsOffset(m *elfsym.Module, seg elf.ProgHeader) (offset uint64, ok bool, err error) {
	if m == l.space.Executable() {
		align := max(seg.Align, 1)
		if align&(align-1) != 0 || align > maxTLS {
			return 0, false, nil
		}
		first := -seg.Vaddr & (align - 1)
		return (seg.Memsz-first+align-1)&^(align-1) + first, true, nil
	}
	var word uint64
	rerr := m.Image.Relocs(func(r elfsym.Reloc) bool {
		// Without a symbol the addend is the place in the module's own block.
		if r.Type != elf.R_X86_64_TPOFF64 || r.Sym != 0 || uint64(r.Addend) >= seg.Memsz {
			return true
		}
		if word, err = read64(l.mem, m.Addr(r.Off)); err != nil {
			return false
		}
		offset, ok = uint64(r.Addend)-word, true
		ok = ok && offset >= seg.Memsz && offset <= maxTLS
		return !ok
	})
	if err == nil && rerr != nil {
		return 0, false, nil // a table that does not fit is nothing to go by
	}
	return offset, ok, err
}
