package elfsym

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"hotpatch/internal/procfs"
)

// wordSize is the size of a vtable slot, in bytes.
const wordSize = 8

// Slot is one 8-byte word in memory that holds one of the addresses looked for.
type Slot struct {
	Addr   uint64 // runtime address of the word, a multiple of 8
	Value  uint64 // what it holds
	Module *Module
	// Table is the vtable (_ZTV…, "vtable for C") or construction vtable (_ZTC…)
	// that holds the slot. Without symbols its Name is empty and its Addr is the
	// address point, which objects point to.
	Table Symbol
	Index int // in words from Table.Addr
}

// String says where the slot is.
func (s Slot) String() string {
	name := s.Module.Name
	switch {
	case s.Table.Name != "":
		name += "!" + s.Table.Demangled()
	case s.Table.Addr != 0:
		name += fmt.Sprintf("!vtable at %#x", s.Table.Addr)
	default:
		return fmt.Sprintf("%s, word at %#x", name, s.Addr)
	}
	return fmt.Sprintf("%s slot %d at %#x", name, s.Index, s.Addr)
}

// VTables gives the vtables and construction vtables of a module that have
// symbols, in ascending order of address. The caller must not change the list.
func (s *Space) VTables(m *Module) ([]Symbol, error) {
	d, err := s.derivedOf(m)
	if err != nil {
		return nil, err
	}
	return d.vtables, nil
}

// isVTable: _ZTV is a vtable group, _ZTC a construction vtable (Itanium C++ ABI,
// 5.1.4.1 and 2.6).
func isVTable(s *Sym) bool {
	const most = 1 << 20 // bytes; the largest ones known have some ten thousand
	return s.Type == elf.STT_OBJECT && s.Size > 0 && s.Size <= most && s.Value%wordSize == 0 &&
		(bytes.HasPrefix(s.Name, []byte("_ZTV")) || bytes.HasPrefix(s.Name, []byte("_ZTC")))
}

// VTableSlots finds every aligned word in the data of all modules that holds one
// of the target addresses now. slots are proven to be vtable slots; others are
// words somewhere else, such as tables of function pointers, which nobody may
// write. GOT entries are in neither.
//
// With symbols a slot is what lies in a vtable's range [Addr, Addr+Size): null
// slots and several tables in a group do not matter. In a module without .symtab
// a word outside of the exported vtables is a slot only if the words in front of
// it are code addresses or null, back to a typeinfo pointer, which is proven to
// be one, and an offset-to-top in front of that. Classes without run-time type
// information cannot be proven; their slots are in others.
//
// mem is the memory of the process; all of it is read at the time of the call.
// A module whose symbols are damaged is a fault, as is memory that cannot be
// read.
func (s *Space) VTableSlots(mem procfs.Memory, targets map[uint64]bool) (slots, others []Slot, err error) {
	if len(targets) == 0 {
		return nil, nil, nil
	}
	for _, m := range s.Modules {
		if m.Image == nil || m.Kind == VDSO {
			continue
		}
		v := vtableScan{s: s, m: m, mem: mem, targets: targets}
		err := v.run()
		// A program may close a library and open it again at the same place,
		// some do all the time: it is read when it stays, or found gone.
		for try := 0; err != nil && try < 50 && !s.unloaded(m); try++ {
			time.Sleep(time.Millisecond)
			v = vtableScan{s: s, m: m, mem: mem, targets: targets}
			err = v.run()
		}
		switch {
		case err == nil:
			slots, others = append(slots, v.slots...), append(others, v.others...)
		case !s.unloaded(m):
			return nil, nil, err
		}
	}
	return slots, others, nil
}

// unloaded reports whether a module that could not be read is gone: the process
// has closed the library since the Space was read.
func (s *Space) unloaded(m *Module) bool {
	if s.proc == nil || len(m.Maps) == 0 {
		return false
	}
	maps, err := s.proc.Maps()
	if err != nil {
		return false
	}
	first := m.Maps[0]
	return !slices.ContainsFunc(maps, func(now procfs.Map) bool { return now.Start == first.Start && now.Inode == first.Inode })
}

// vtableScan searches one module.
type vtableScan struct {
	s             *Space
	m             *Module
	mem           procfs.Memory
	targets       map[uint64]bool
	tables        []Symbol
	slots, others []Slot
	steps         int // words read for proofs
}

func (v *vtableScan) run() error {
	ranges, err := v.dataRanges()
	if err != nil {
		return err
	}
	var hits []uint64
	for _, r := range ranges {
		if hits, err = v.search(hits, r); err != nil {
			return err
		}
	}
	if len(hits) == 0 {
		return nil
	}
	if v.tables, err = v.s.VTables(v.m); err != nil {
		return err
	}
	got, err := v.m.gotWords(hits)
	if err != nil {
		return err
	}
	stripped := !v.m.Image.HasSymtab() && v.s.debugTable(v.m).image == nil
	for _, addr := range hits {
		value, err := word(v.mem, addr)
		if err != nil {
			return err
		}
		slot := Slot{Addr: addr, Value: value, Module: v.m}
		table, ok := v.tableAt(addr)
		switch {
		case ok:
			slot.Table, slot.Index = table, int((addr-table.Addr)/wordSize)
			v.slots = append(v.slots, slot)
			continue
		case got[addr]:
			continue
		}
		if stripped {
			if point, ok := v.addressPoint(addr); ok {
				slot.Table.Addr, slot.Table.Module = point, v.m
				slot.Index = int((addr - point) / wordSize)
				v.slots = append(v.slots, slot)
				continue
			}
		}
		v.others = append(v.others, slot)
	}
	return nil
}

// dataRanges gives the runtime ranges in which vtables can be, sorted and
// without overlap: the file-backed part of all segments but the code (in a
// program that is not position-independent, vtables are in read-only data), and
// the vtables of libraries that the dynamic linker has copied into the program's .bss.
func (v *vtableScan) dataRanges() ([]codeRange, error) {
	var list []codeRange
	im := v.m.Image
	fixed := im.Type() == elf.ET_EXEC
	var text []codeRange
	for _, sec := range im.Sections() {
		if sec.Flags&elf.SHF_EXECINSTR != 0 && sec.Flags&elf.SHF_ALLOC != 0 && sec.Addr+sec.Size >= sec.Addr {
			text = append(text, codeRange{sec.Addr, sec.Addr + sec.Size})
		}
	}
	for _, p := range im.Segments() {
		if p.Type != elf.PT_LOAD || !fixed && p.Flags&elf.PF_W == 0 {
			continue
		}
		if p.Flags&elf.PF_X != 0 && len(text) == 0 {
			continue
		}
		r := codeRange{p.Vaddr, p.Vaddr + p.Filesz}
		if p.Flags&elf.PF_X == 0 {
			list = append(list, r)
			continue
		}
		list = append(list, without(r, text)...)
	}
	for i := range list {
		list[i].start, list[i].end = v.m.Addr(list[i].start), v.m.Addr(list[i].end)
	}
	copied, err := v.copiedTables()
	if err != nil {
		return nil, err
	}
	list = append(list, copied...)
	slices.SortFunc(list, func(a, b codeRange) int { return cmp.Compare(a.start, b.start) })
	out := list[:0]
	for _, r := range list {
		if n := len(out); n > 0 && r.start <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, r.end)
		} else if r.end > r.start {
			out = append(out, r)
		}
	}
	return out, nil
}

// copiedTables gives the runtime ranges of the vtables that the program has copies of
// (R_X86_64_COPY, which only a program can have).
func (v *vtableScan) copiedTables() (list []codeRange, err error) {
	if v.m.Kind != Executable {
		return nil, nil
	}
	var damage error
	err = v.m.Image.Relocs(func(r Reloc) bool {
		if r.Type != elf.R_X86_64_COPY {
			return true
		}
		var sym Sym
		if sym, damage = v.m.Image.DynSym(r.Sym); damage == nil && isVTable(&sym) {
			at := v.m.Addr(r.Off)
			list = append(list, codeRange{at, min(at+sym.Size, v.m.Hi)})
		}
		return damage == nil
	})
	if err == nil {
		err = damage
	}
	return list, err
}

// without gives what is left of r when the holes are taken out.
func without(r codeRange, holes []codeRange) []codeRange {
	holes = slices.Clone(holes)
	slices.SortFunc(holes, func(a, b codeRange) int { return cmp.Compare(a.start, b.start) })
	var list []codeRange
	for _, h := range holes {
		if h.end <= r.start || h.start >= r.end {
			continue
		}
		if h.start > r.start {
			list = append(list, codeRange{r.start, h.start})
		}
		r.start = h.end
	}
	if r.start < r.end {
		list = append(list, r)
	}
	return list
}

// search appends the addresses of the words in a range that hold a target.
func (v *vtableScan) search(hits []uint64, r codeRange) ([]uint64, error) {
	const chunk = 1 << 16
	var buf [chunk]byte
	at := (r.start + wordSize - 1) &^ (wordSize - 1)
	for end := r.end &^ (wordSize - 1); at < end; {
		b := buf[:min(chunk, end-at)]
		if err := v.mem.ReadAt(b, at); err != nil {
			return nil, err
		}
		for i := 0; i+wordSize <= len(b); i += wordSize {
			if w := binary.LittleEndian.Uint64(b[i:]); w != 0 && v.targets[w] {
				hits = append(hits, at+uint64(i))
			}
		}
		at += uint64(len(b))
	}
	return hits, nil
}

// tableAt gives the vtable whose range holds the word.
func (v *vtableScan) tableAt(addr uint64) (Symbol, bool) {
	i, _ := slices.BinarySearchFunc(v.tables, addr, func(t Symbol, a uint64) int {
		if t.Addr <= a {
			return -1
		}
		return 1
	})
	for ; i > 0; i-- {
		if t := v.tables[i-1]; addr-t.Addr+wordSize <= t.Size {
			return t, true
		} else if i > 1 && v.tables[i-2].Addr != t.Addr {
			break
		}
	}
	return Symbol{}, false
}

// gotWords tells which of the words at these runtime addresses the dynamic
// linker fills with the addresses of functions for calls.
func (m *Module) gotWords(addrs []uint64) (map[uint64]bool, error) {
	got := make(map[uint64]bool, len(addrs))
	for _, a := range addrs {
		got[a] = false
	}
	err := m.Image.Relocs(func(r Reloc) bool {
		switch r.Type {
		case elf.R_X86_64_JMP_SLOT, elf.R_X86_64_GLOB_DAT, elf.R_X86_64_IRELATIVE:
			if _, ok := got[m.Addr(r.Off)]; ok {
				got[m.Addr(r.Off)] = true
			}
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	// Entries for the module's own functions have plain relative relocations.
	for _, name := range []string{".got", ".got.plt", ".plt.got"} {
		sec, ok := m.Image.Section(name)
		for a := range got {
			if ok && sec.Contains(m.Vaddr(a)) {
				got[a] = true
			}
		}
	}
	return got, nil
}

func word(mem procfs.Memory, addr uint64) (uint64, error) {
	var b [wordSize]byte
	err := mem.ReadAt(b[:], addr)
	return binary.LittleEndian.Uint64(b[:]), err
}
