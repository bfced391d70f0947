package runpre

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"hotpatch/internal/objfile"
)

// maxDatum bounds the bytes of one variable that are compared; maxDepth, how far
// variables that point to each other are followed at once.
const (
	maxDatum = 16 << 20
	maxDepth = 32
)

type datumKey struct {
	key
	addr uint64
}

// datum is what comparing a variable has found.
type datum struct {
	s   *solution
	err error
}

// verify checks that a symbol, of which off bytes behind are meant, can be at an
// address; c is the comparison that wants to know.
func (m *matcher) verify(y *objfile.Symbol, off int64, to uint64, c *comparison) (proofs int, err error) {
	at := to - uint64(off)
	if nameless(y) {
		if off < 0 && y.Type != elf.STT_SECTION && y.Section.Flags&elf.SHF_MERGE != 0 {
			// Linkers move what the symbol is at, and count from there; what is meant may
			// lie before it (gcc loops over an index that begins with one).
			return m.constant(y.Section, int64(y.Value), at, c)
		}
		return m.constant(y.Section, int64(y.Value)+off, to, c)
	}
	if y.Type == elf.STT_SECTION {
		return 0, nil
	}
	if err := m.checkName(y, at); err != nil {
		return 0, err
	}
	s := m.im.seg(at)
	switch {
	case s == nil && y.Section == nil:
		return 0, nil // symbols that linkers make can stand at the end of everything
	case s == nil:
		return 0, fmt.Errorf("%s would be at %#x, which is not in the image", y, at)
	case y.IsFunc() && y.Section != nil && s.flags&elf.PF_X == 0:
		return 0, fmt.Errorf("%s would be at %#x, where no code is", y, at)
	case y.Section == nil:
		if m.im.copies[at] == y.Name {
			return 1, nil
		}
		return 0, nil
	case y.Section.Flags&elf.SHF_EXECINSTR != 0:
		return 0, nil
	case y.Bind == elf.STB_WEAK && y.Section.Group == nil:
		return 0, nil // another definition may have taken its place
	}
	if y.Section.Flags&elf.SHF_WRITE != 0 && s.flags&elf.PF_W == 0 {
		return 0, fmt.Errorf("%s would be at %#x, which is read-only", y, at)
	}
	d := m.datum(y, at)
	if d.err != nil {
		return 0, fmt.Errorf("%s would be at %#x: %w", y, at, d.err)
	}
	return d.s.proofs, nil
}

// nameless reports whether a symbol stands for a constant that has only a
// compiler's label, or none: such constants are known by their content, and
// linkers merge them.
func nameless(y *objfile.Symbol) bool {
	s := y.Section
	if s == nil || s.Flags&(elf.SHF_WRITE|elf.SHF_EXECINSTR) != 0 {
		return false
	}
	return y.Type == elf.STT_SECTION || y.Size == 0 || s.Flags&elf.SHF_MERGE != 0 || strings.HasPrefix(y.Name, ".L")
}

// constant compares a constant without a name.
func (m *matcher) constant(s *objfile.Section, off int64, to uint64, c *comparison) (proofs int, err error) {
	if off < 0 || uint64(off) >= s.Size || s.Data == nil {
		return 0, nil // a base to count from, which nothing can be said of
	}
	lo, hi := uint64(off), s.Size
	switch {
	case s.Flags&(elf.SHF_MERGE|elf.SHF_STRINGS) == elf.SHF_MERGE|elf.SHF_STRINGS && s.EntSize > 0 && s.EntSize <= 8:
		for i := lo; i+s.EntSize <= s.Size; i += s.EntSize {
			if bytes.Count(s.Data[i:i+s.EntSize], []byte{0}) == int(s.EntSize) {
				hi = i + s.EntSize
				break
			}
		}
	case s.Flags&elf.SHF_MERGE != 0 && s.EntSize > 0:
		hi = min(lo-lo%s.EntSize+s.EntSize, s.Size)
	default:
		bounds := m.bounds[s]
		if i, _ := slices.BinarySearch(bounds, lo+1); i < len(bounds) {
			hi = min(hi, bounds[i])
		}
		// Behind it there may be padding.
		for hi > lo && s.Data[hi-1] == 0 && len(s.Within(hi-1, hi)) == 0 && !covers(s, hi-1) {
			hi--
		}
	}
	return c.content(s, lo, hi, to)
}

// covers reports whether a relocation writes the byte at off.
func covers(s *objfile.Section, off uint64) bool {
	for _, r := range s.Within(max(off, 7)-7, off+1) {
		if r.Off+uint64(r.Width()) > off {
			return true
		}
	}
	return false
}

// datum compares a variable's initial content with what is at an address.
func (m *matcher) datum(y *objfile.Symbol, at uint64) *datum {
	k := datumKey{keyOf(y), at}
	if d := m.data[k]; d != nil {
		return d
	}
	d := &datum{s: &solution{addr: at, end: at + y.Size}}
	if m.depth >= maxDepth {
		return d
	}
	m.data[k] = d // variables can point to each other
	m.depth++
	defer func() { m.depth-- }()
	n := min(y.Size, y.Section.Size-min(y.Value, y.Section.Size), maxDatum)
	if y.Section.Data == nil {
		b, ok := m.im.bytes(at, min(n, 1<<16))
		if !ok || len(bytes.Trim(b, "\x00")) > 0 {
			d.err = fmt.Errorf("it has no initial value, and the image has one there")
		}
		return d
	}
	c := &comparison{m: m, f: &function{}, s: d.s}
	proofs, err := c.content(y.Section, y.Value, y.Value+n, at)
	d.s.proofs, d.err = d.s.proofs+proofs, err
	return d
}

// content compares initialised bytes, and solves their relocations.
func (c *comparison) content(s *objfile.Section, lo, hi, at uint64) (proofs int, err error) {
	run, ok := c.m.im.bytes(at, hi-lo)
	if !ok {
		return 0, fmt.Errorf("%d bytes at %#x are not in the image", hi-lo, at)
	}
	from, fixed := lo, 0
	same := func(to uint64) bool {
		if to > from {
			a := s.Data[from:to]
			if !bytes.Equal(a, run[from-lo:to-lo]) {
				return false
			}
			fixed += len(a) - bytes.Count(a, []byte{0})
		}
		return true
	}
	for _, r := range s.Within(lo, hi) {
		w := uint64(r.Width())
		if r.Off+w > hi {
			return 0, fmt.Errorf("a relocation of type %v at its end", r.Type)
		}
		if !same(r.Off) {
			return 0, fmt.Errorf("its bytes differ")
		}
		from = max(from, r.Off+w)
		x := s.Resolve(r, lo)
		place := at + r.Off - lo
		switch r.Type {
		case elf.R_X86_64_NONE:
		case elf.R_X86_64_64:
			v, name, ok := c.m.im.word(place)
			switch {
			case !ok && c.m.im.relocs[place].typ == elf.R_X86_64_IRELATIVE: // an indirect function
			case !ok:
				return 0, fmt.Errorf("no address at %#x", place)
			case name == x.Sym.Name && int64(v) == x.Off:
				proofs++
			case name != "":
				return 0, fmt.Errorf("the address at %#x is that of %s, and not of %s", place, name, x.Sym)
			case v == 0 && x.Sym.Bind == elf.STB_WEAK:
			default:
				err = c.address(x, v)
			}
		case elf.R_X86_64_PC32, elf.R_X86_64_PLT32:
			err = c.address(x, at+uint64(int64(int32(le.Uint32(run[r.Off-lo:])))))
		case elf.R_X86_64_32:
			err = c.address(x, uint64(le.Uint32(run[r.Off-lo:])))
		default:
			return 0, fmt.Errorf("a relocation of type %v, which is not known here", r.Type)
		}
		if err != nil {
			return 0, err
		}
	}
	if !same(hi) {
		return 0, fmt.Errorf("its bytes differ")
	}
	if fixed >= 4 {
		proofs++
	}
	return proofs, nil
}

// named gives the symbols that an image has for one of the object: those of the
// same name, without the numbers of static ones.
func (im *Image) named(y *objfile.Symbol) []symbol {
	if y.Bind != elf.STB_LOCAL {
		return im.names[y.Name]
	}
	var static, same []symbol
	for _, n := range im.names[stem(y.Name)] {
		if n.bind != elf.STB_LOCAL {
			continue
		}
		static = append(static, n)
		if n.file == y.File {
			same = append(same, n)
		}
	}
	if len(same) > 0 {
		return same
	}
	return static
}

// checkName refuses an address that a symbol table contradicts.
func (m *matcher) checkName(y *objfile.Symbol, at uint64) error {
	list := m.im.named(y)
	if len(list) == 0 || y.Name == "" {
		return nil
	}
	for _, n := range list {
		if n.value == at {
			return nil
		}
	}
	return fmt.Errorf("it takes %s to be at %#x, and the symbol table has it at %#x", y, at, list[0].value)
}

// checkThread does the same for the offset of a thread-local variable.
func (m *matcher) checkThread(y *objfile.Symbol, s sort, v int64) error {
	base := int64(0)
	if s == tpOff {
		base = m.im.tlsSize
	}
	if !m.im.hasTLS || v+base < 0 || v+base > m.im.tlsSize {
		return fmt.Errorf("%s would be %d bytes from where thread-local variables are", y, v)
	}
	known := false
	for _, n := range m.im.named(y) {
		if n.typ == elf.STT_TLS {
			if known = true; int64(n.value) == v+base {
				return nil
			}
		}
	}
	if known {
		return fmt.Errorf("it takes %s to be thread-local variable %d, and the symbol table does not", y, v+base)
	}
	return nil
}
