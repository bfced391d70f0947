package engine

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"hotpatch/elfsym"
	"hotpatch/inject"
	"hotpatch/internal/procfs"
	"hotpatch/ptrace"
)

// unload takes the library of an inert patch out of the target, if it can be
// proven that nothing refers to it. Otherwise it gives the reason, and the
// library stays: mapped, and called by nobody.
func (t *target) unload(tr *ptrace.Tracer, id uint64, limit time.Duration) (why string, err error) {
	p := t.ledger.Patch(id)
	loader, err := t.loader()
	if err != nil {
		return "", err
	}
	module := t.space.ModuleAt(p.Lo)
	if module == nil || !module.Ours || module.Lo != p.Lo {
		// It is gone already, by the hand of the program.
		return "", t.forget(id)
	}
	if why := staysForever(module, loader); why != "" {
		return why, nil
	}
	s := &search{t: t, lo: p.Lo, hi: p.Hi, handle: p.Handle, limit: limit, xstate: make([]byte, 16<<10)}
	if r, ok := loader.Region(); ok {
		lo, hi := r.Range()
		s.skip = append(s.skip, [2]uint64{lo, hi})
	}
	s.skip = append(s.skip, [2]uint64{p.Lo, p.Hi})
	own := t.loadersOwn(p.Handle)
	s.skip = append(s.skip, own...)
	switch other, err := t.proc.Sharer(); {
	case err != nil:
		return "", err
	case other != 0:
		return fmt.Sprintf("process %d runs in the same memory, and may be in it", other), nil
	}
	if err := t.cleanAgents(tr, loader); err != nil {
		return "", err
	}
	if why, err := s.run(tr); why != "" || err != nil {
		return why, err
	}
	agent, err := loader.Start(tr)
	if err != nil {
		return "", err
	}
	unmapped, err := agent.Unload(&inject.Library{Handle: p.Handle, Bias: p.Base, Lo: p.Lo, Hi: p.Hi})
	if err := errors.Join(err, agent.Close()); err != nil {
		return "", err
	}
	if !unmapped {
		return "the loader keeps it although it was closed", nil
	}
	if err := s.scrub(tr, own); err != nil {
		return "", err
	}
	return "", t.forget(id)
}

// cleanAgents clears what agents of the past have left on the stack that they
// share: the loader ran on it.
func (t *target) cleanAgents(tr *ptrace.Tracer, loader *inject.Loader) error {
	agent, err := loader.Start(tr)
	if err != nil {
		return err
	}
	return errors.Join(agent.CleanStack(tr), agent.Close())
}

// loadersOwn gives the memory in which the loader describes a library: struct
// link_map, which the handle points to, and the pieces that it points to in
// turn. They do refer to the library, and go with it. The sizes are those that
// the allocator of glibc keeps in front of each piece; where they make no sense,
// as with another allocator, nothing is left out.
func (t *target) loadersOwn(handle uint64) [][2]uint64 {
	piece := func(at, least, most uint64) (r [2]uint64, ok bool) {
		var b [8]byte
		if at%16 != 0 || t.mem.ReadAt(b[:], at-8) != nil {
			return r, false
		}
		size := binary.LittleEndian.Uint64(b[:])&^7 - 8
		return [2]uint64{at, at + size}, size >= least && size <= most
	}
	whole, ok := piece(handle, 0x300, 0x1000)
	if !ok {
		return nil
	}
	own := [][2]uint64{whole}
	b := make([]byte, (whole[1]-whole[0])&^7)
	if t.mem.ReadAt(b, handle) != nil {
		return own
	}
	for i := 0; i+8 <= len(b); i += 8 {
		if r, ok := piece(binary.LittleEndian.Uint64(b[i:]), 0x18, 64<<10); ok {
			own = append(own, r)
		}
	}
	return own
}

func (t *target) forget(id uint64) error {
	l := t.ledger.Clone()
	if err := l.Forget(id); err != nil {
		return err
	}
	return t.save(l)
}

// staysForever says why the loader would not unmap a library, or gives "".
func staysForever(m *elfsym.Module, loader *inject.Loader) string {
	if loader.Musl() {
		return "musl never unmaps a library"
	}
	if m.Image == nil {
		return "its file cannot be read"
	}
	const noDelete = 0x8 // DF_1_NODELETE
	if flags, ok := m.Image.DynTag(elf.DT_FLAGS_1); ok && flags&noDelete != 0 {
		return "it was linked with -z nodelete"
	}
	why := ""
	err := m.Image.Symbols(elfsym.Dynsym, func(s *elfsym.Sym) bool {
		const unique = 10 // STB_GNU_UNIQUE
		switch {
		case s.Bind == unique && s.Defined():
			why = fmt.Sprintf("it defines the unique symbol %s, which pins it", elfsym.Demangle(string(s.Name)))
		case string(s.Name) == "__cxa_thread_atexit" || string(s.Name) == "__cxa_thread_atexit_impl":
			why = "it has thread-local variables with destructors, which pin it"
		}
		return why == ""
	})
	if err != nil {
		return err.Error()
	}
	return why
}

// search looks for anything in the target that points into [lo, hi).
type search struct {
	t      *target
	lo, hi uint64
	handle uint64 // of the library, for the loader's table of all libraries
	skip   [][2]uint64
	limit  time.Duration
	xstate []byte
}

// run searches while everything is stopped. It gives what it found, or "".
func (s *search) run(tr *ptrace.Tracer) (found string, err error) {
	p, err := s.t.newPages()
	if err != nil {
		return "", err
	}
	defer p.close()
	world, err := tr.StopAll(stopLimit)
	if errors.Is(err, ptrace.ErrTimeout) && tr.Await(latePatience, func() bool { return false }) {
		world, err = tr.StopAll(stopLimit)
	}
	if errors.Is(err, ptrace.ErrTimeout) {
		return err.Error(), nil
	}
	if err != nil {
		return "", err
	}
	defer world.Resume()
	maps, err := s.t.proc.Maps()
	if err != nil {
		return "", err
	}
	for _, th := range world.Threads {
		r := &th.Regs
		for _, v := range []uint64{r.R15, r.R14, r.R13, r.R12, r.Rbp, r.Rbx, r.R11, r.R10, r.R9, r.R8, r.Rax, r.Rcx, r.Rdx, r.Rsi, r.Rdi, r.Rip} {
			if s.inside(v) {
				return fmt.Sprintf("a register of thread %d points into it (%#x)", th.TID, v), nil
			}
		}
		x, err := th.XState(s.xstate)
		if err != nil {
			return "", err
		}
		if s.scan(0, x) != 0 {
			return fmt.Sprintf("a vector register of thread %d points into it", th.TID), nil
		}
	}
	for _, m := range maps {
		if m.Perm&procfs.Write == 0 || m.Perm&procfs.Read == 0 || covered(s.skip, m) {
			continue
		}
		var at uint64
		err := p.each(m, func(addr uint64, b []byte) (bool, error) {
			if time.Since(world.Began) > s.limit {
				return false, errTooLong
			}
			at = s.scan(addr, b)
			return at == 0, nil
		})
		switch {
		case errors.Is(err, errTooLong):
			return fmt.Sprintf("the process has too much memory to look through within %v", s.limit), nil
		case err != nil:
			return "", err
		case at != 0:
			name := m.Path
			if name == "" {
				name = "anonymous memory"
			}
			return fmt.Sprintf("the word at %#x (%s) points into it", at, name), nil
		}
	}
	if p.unreadable != 0 {
		return fmt.Sprintf("the page at %#x cannot be read, and may hold something that points into it", p.unreadable), nil
	}
	return "", nil
}

// scrub clears what still points into the library, which is unmapped now, in the
// memory in which the loader has described it: freed memory keeps its content, and
// the next library may be mapped at the same place.
func (s *search) scrub(tr *ptrace.Tracer, own [][2]uint64) error {
	world, err := tr.StopAll(stopLimit)
	if errors.Is(err, ptrace.ErrTimeout) {
		return nil // the next unload may find such a word, and say so
	}
	if err != nil {
		return err
	}
	defer world.Resume()
	for _, r := range own {
		b := make([]byte, (r[1]-r[0])&^7)
		if s.t.mem.ReadAt(b, r[0]) != nil {
			continue // the allocator has given it back
		}
		for i := 0; i+8 <= len(b); i += 8 {
			if !s.inside(binary.LittleEndian.Uint64(b[i:])) {
				continue
			}
			if err := s.t.mem.WriteAt(make([]byte, 8), r[0]+uint64(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

var errTooLong = errors.New("takes too long")

func (s *search) inside(v uint64) bool { return v-s.lo < s.hi-s.lo }

// scan gives the address of the first aligned word that points into the range
// and is not to be skipped, or 0. b begins at addr.
func (s *search) scan(addr uint64, b []byte) uint64 {
	for i := 0; i+8 <= len(b); i += 8 {
		v := binary.LittleEndian.Uint64(b[i:])
		if !s.inside(v) {
			continue
		}
		const entry = 32
		if v == s.lo && i+entry <= len(b) && s.loadersEntry(b[i:]) {
			i += entry - 8
			continue
		}
		if !skipped(s.skip, addr+uint64(i)) {
			return max(addr+uint64(i), 1)
		}
	}
	return 0
}

// loadersEntry reports whether the words, of which the first is the address of the
// library's ELF header, are an entry in the table behind _dl_find_object (glibc
// 2.35): the first and the last address of a library, its handle, and its unwind
// table. In the entry of one that was closed, and lay at the same place, the second
// is the first, and there is no handle.
func (s *search) loadersEntry(b []byte) bool {
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	const most = 1 << 31 // the size of a library
	return word(2) == s.handle || word(1) == s.lo && word(2) == 0 && word(3)-s.lo < most
}
