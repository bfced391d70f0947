package elfsym

import (
	"bytes"
	"debug/elf"
	"strings"
)

// addressPoint proves that the word at addr is a slot of a vtable without a
// symbol, and gives the table's address point (the runtime address that objects
// point to). The proof is the layout in front of it (Itanium C++ ABI, 2.5.2):
// offset-to-top, typeinfo pointer, and then virtual functions only. Two null
// words in a row are taken for the header of a class without type information,
// whose table cannot be proven.
func (v *vtableScan) addressPoint(addr uint64) (uint64, bool) {
	// Bounds for data that is made to be slow; what is left is not proven.
	const mostSlots, mostSteps = 4096, 1 << 20
	nulls := 0
	for n, at := 0, addr-wordSize; n < mostSlots && v.steps < mostSteps && at >= v.m.Lo+wordSize; n, at = n+1, at-wordSize {
		v.steps++
		w, err := word(v.mem, at)
		if err != nil {
			return 0, false
		}
		switch {
		case w == 0:
			if nulls++; nulls == 2 {
				return 0, false
			}
		case v.isCode(w):
			nulls = 0
		default:
			top, err := word(v.mem, at-wordSize)
			return at + wordSize, err == nil && plausibleTop(int64(top)) && v.isTypeInfo(w)
		}
	}
	return 0, false
}

// plausibleTop judges an offset-to-top: the distance, in bytes, from a vptr to
// the beginning of its object.
func plausibleTop(top int64) bool {
	const most = 1 << 31
	return -most < top && top < most && top%wordSize == 0
}

// isCode reports whether addr can be that of a function. Old linkers put read-only
// data, and so type information, into the executable segment too.
func (v *vtableScan) isCode(addr uint64) bool {
	m := v.s.ModuleAt(addr)
	if m == nil || !m.InText(addr) {
		return false
	}
	sec, ok := m.Image.sectionAt(m.Vaddr(addr))
	return !ok || sec.Flags&elf.SHF_EXECINSTR != 0
}

// isTypeInfo reports whether there is a std::type_info object of a class at addr:
// its name is a string, and the type of the object itself, which its own vtable
// tells, is one of the three of the C++ run-time library that describe classes
// (Itanium C++ ABI, 2.9.5).
func (v *vtableScan) isTypeInfo(addr uint64) bool {
	if addr%wordSize != 0 || v.s.ModuleAt(addr) == nil {
		return false
	}
	vptr, err := word(v.mem, addr)
	if err != nil || vptr%wordSize != 0 || v.s.ModuleAt(vptr) == nil {
		return false
	}
	if _, ok := v.typeName(addr); !ok {
		return false
	}
	meta, err := word(v.mem, vptr-wordSize)
	if err != nil || meta%wordSize != 0 || v.s.ModuleAt(meta) == nil {
		return false
	}
	name, ok := v.typeName(meta)
	if !ok {
		return false
	}
	switch strings.TrimPrefix(name, "*") {
	case "N10__cxxabiv117__class_type_infoE", "N10__cxxabiv120__si_class_type_infoE", "N10__cxxabiv121__vmi_class_type_infoE":
		return true
	}
	return false
}

// typeName reads the mangled name that a type_info object at addr points to. A
// "*" in front marks names that are unique to their module.
func (v *vtableScan) typeName(addr uint64) (string, bool) {
	p, err := word(v.mem, addr+wordSize)
	if err != nil || v.s.ModuleAt(p) == nil {
		return "", false
	}
	// Names are as long as they like, but the beginning is enough. The string
	// may end near the end of a page that nothing follows.
	var b [64]byte
	n := len(b)
	if rest := pageCeil(p+1) - p; uint64(n) > rest {
		n = int(rest)
	}
	if v.mem.ReadAt(b[:n], p) != nil {
		return "", false
	}
	name, _, _ := bytes.Cut(b[:n], []byte{0})
	for i, c := range name {
		if !identByte(c) && c != '.' && !(i == 0 && c == '*') {
			return "", false
		}
	}
	return string(name), len(name) > 0
}
