package elfsym

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"

	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
)

// IFuncImplementations gives the addresses of the functions that an IFUNC's
// resolver has chosen in this process, in ascending order: usually one. They are
// read from the memory of the process, out of the words that the dynamic linker
// fills with the resolver's answer: R_X86_64_IRELATIVE in the module itself, and
// the symbol's GOT entries and pointers in all modules. An entry that is not
// bound yet does not count. If no word tells, nobody has called the function
// through the linker, and the answer is fault "ifunc-unresolved".
func (s *Space) IFuncImplementations(mem procfs.Memory, sym Symbol) ([]uint64, error) {
	if sym.Module == nil || !sym.IsIFunc() {
		return nil, &fault.Error{Kind: fault.Unfit, Code: "not-an-ifunc", What: "cannot resolve " + sym.Name, Why: "it is not an indirect function"}
	}
	var list []uint64
	for _, m := range s.Modules {
		if m.Image == nil || m.Kind == VDSO {
			continue
		}
		var words []uint64
		resolver := sym.Module.Vaddr(sym.Addr)
		var symErr error
		err := m.Image.Relocs(func(r Reloc) bool {
			switch r.Type {
			case elf.R_X86_64_IRELATIVE:
				if m == sym.Module && uint64(r.Addend) == resolver {
					words = append(words, r.Off)
				}
			case elf.R_X86_64_JMP_SLOT, elf.R_X86_64_GLOB_DAT, elf.R_X86_64_64:
				if r.Sym == 0 || r.Type == elf.R_X86_64_64 && r.Addend != 0 {
					return true
				}
				// Without its file, a module's unbound entry looks like one
				// that is bound to itself.
				if m == sym.Module && m.Image.FromMemory() && r.Type == elf.R_X86_64_JMP_SLOT {
					return true
				}
				d, err := m.Image.DynSym(r.Sym)
				if err != nil {
					symErr = err
					return false
				}
				sameVersion := len(d.Version) == 0 || sym.Version == "" || string(d.Version) == sym.Version
				if string(d.Name) == sym.Name && sameVersion {
					words = append(words, r.Off)
				}
			}
			return true
		})
		if err == nil {
			err = symErr
		}
		if err != nil {
			return nil, err
		}
		for _, off := range words {
			value, err := word(mem, m.Addr(off))
			if err != nil {
				return nil, err
			}
			// The word counts if it is bound to this definition: the resolver
			// chooses among the functions of its own module.
			if value == sym.Addr || !sym.Module.InText(value) || m.unbound(off, value) || sym.Module.inPLT(value) {
				continue
			}
			if !slices.Contains(list, value) {
				list = append(list, value)
			}
		}
	}
	if len(list) == 0 {
		return nil, &fault.Error{
			Kind: fault.Unfit, Code: "ifunc-unresolved",
			What: "cannot find the implementation of " + sym.Name, Where: fmt.Sprintf("%s, resolver at %#x", sym.Module.Name, sym.Addr),
			Why:  "it is an indirect function that nothing in the process has called or bound yet",
			Hint: "name the implementation itself",
		}
	}
	slices.Sort(list)
	return list, nil
}

// unbound reports whether a word still has the value from its file, plus the
// load bias: the address of the PLT code that will bind it.
func (m *Module) unbound(off, value uint64) bool {
	var b [wordSize]byte
	if m.Image.FromMemory() || m.Image.ReadVaddr(b[:], off) != nil {
		return false
	}
	w := binary.LittleEndian.Uint64(b[:])
	return w != 0 && m.Addr(w) == value
}

// inPLT reports whether a runtime address lies in one of the module's procedure
// linkage tables.
func (m *Module) inPLT(addr uint64) bool {
	sec, ok := m.Image.sectionAt(m.Vaddr(addr))
	return ok && (sec.Name == ".plt" || sec.Name == ".plt.sec" || sec.Name == ".plt.got" || sec.Name == ".iplt")
}
