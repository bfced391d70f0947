package elfsym

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"slices"
	"strings"
)

// A symbol table of hundreds of thousands of entries is tens of megabytes. Whoever
// asks for a few names does not need it in memory: the string table is searched for
// the names in pieces that stay in the processor's cache, and then the entries are
// looked through for those that point there.

const (
	pieceSize    = 2048 * symSize // bytes that are read at a time, at most; whole entries
	maxMentions  = 1 << 9         // entries that are worth looking at one by one
	maxNameBytes = 1 << 20        // bytes of one name, and in front of one in the same string
	fewNames     = 16             // for how many names tables are searched in this way
	maxSearches  = 8              // how many searches of one module; then all of it is read
)

// tableSource gives the entries and the strings of a symbol table in pieces. The table
// is not loaded for that, but used if it has been.
type tableSource struct {
	entries, strings uint64 // sizes in bytes; entries is a multiple of symSize
	syms, str        []byte // the table, if it is loaded
	im               *Image // else it stands in this file,
	symsOff, strOff  uint64 // here,
	buf              []byte // and is read into this, of a multiple of symSize bytes
}

// source opens a table of a file. A file that does not have it has one without entries.
func (im *Image) source(t Table) (*tableSource, error) {
	if t == Dynsym || im.tables[t] != nil {
		st := im.table(t)
		return &tableSource{entries: uint64(len(st.syms)) / symSize * symSize, strings: uint64(len(st.str)), syms: st.syms, str: st.str}, st.err
	}
	syms, str, err := im.symtabSections()
	if err != nil || syms.Size == 0 {
		return &tableSource{}, err
	}
	if im.piece == nil {
		im.piece = make([]byte, min(pieceSize, max(syms.Size, (str.Size+symSize-1)/symSize*symSize)))
	}
	return &tableSource{entries: syms.Size, strings: str.Size, im: im, symsOff: syms.Off, strOff: str.Off, buf: im.piece}, nil
}

// entriesAt gives some entries from an offset on, at least one and at most so many bytes;
// they are to be used before the next piece is asked for.
func (x *tableSource) entriesAt(off, most uint64) ([]byte, error) {
	most = min(most, x.entries-off)
	if x.im == nil {
		return x.syms[off : off+most], nil
	}
	b := x.buf[:min(uint64(len(x.buf)), most)]
	return b, x.im.read(b, x.symsOff+off)
}

// stringsAt gives the strings from an offset on, or a piece of them, which is to be used
// before the next one is asked for.
func (x *tableSource) stringsAt(off uint64) ([]byte, error) {
	if x.im == nil {
		return x.str[off:], nil
	}
	b := x.buf[:min(uint64(len(x.buf)), x.strings-off)]
	return b, x.im.read(b, x.strOff+off)
}

// readStrings reads bytes of the strings, which must be there; no piece is lost by it.
func (x *tableSource) readStrings(b []byte, off uint64) error {
	if x.im == nil {
		copy(b, x.str[off:])
		return nil
	}
	return x.im.read(b, x.strOff+off)
}

// each visits all entries but the empty entry 0, as they stand in the file, until visit
// returns false.
func (x *tableSource) each(visit func(i uint32, entry []byte) bool) error {
	i := uint32(1)
	for at := uint64(symSize); at < x.entries; {
		b, err := x.entriesAt(at, x.entries)
		if err != nil {
			return err
		}
		at += uint64(len(b))
		for ; len(b) > 0; b = b[symSize:] {
			if !visit(i, b[:symSize]) {
				return nil
			}
			i++
		}
	}
	return nil
}

// name reads the string at an offset. One that is not terminated is cut at the end of the
// table, and any after most bytes; then ok is false.
func (x *tableSource) name(off, most uint64) (name []byte, ok bool, err error) {
	for size := uint64(128); off < x.strings; size *= 4 {
		name = make([]byte, min(size, most, x.strings-off))
		if err := x.readStrings(name, off); err != nil {
			return nil, false, err
		}
		if end := bytes.IndexByte(name, 0); end >= 0 {
			return name[:end], true, nil
		}
		if n := uint64(len(name)); n == x.strings-off || n == most {
			return name, n < most, nil
		}
	}
	return nil, true, nil
}

// begins reports whether the string at an offset begins with a text.
func (x *tableSource) begins(off uint32, text string) (bool, error) {
	if x.strings < uint64(len(text)) || uint64(off) > x.strings-uint64(len(text)) {
		return false, nil
	}
	b := make([]byte, len(text))
	err := x.readStrings(b, uint64(off))
	return err == nil && string(b) == text, err
}

// fileAbove gives the name of the last STT_FILE symbol in front of an entry.
func (x *tableSource) fileAbove(index uint32) ([]byte, error) {
	few := uint64(512 * symSize) // most files have no more symbols
	if x.im != nil {
		few = min(few, uint64(len(x.buf)))
	}
	for end := uint64(index) * symSize; end > 0; {
		at := max(end, few) - few
		b, err := x.entriesAt(at, end-at)
		if err != nil {
			return nil, err
		}
		for i := len(b) - symSize; i >= 0; i -= symSize {
			if elf.SymType(b[i+4]&0xf) == elf.STT_FILE {
				name, _, err := x.name(uint64(binary.LittleEndian.Uint32(b[i:])), x.strings)
				return name, err
			}
		}
		end = at
	}
	return nil, nil
}

// nameRange is where the names begin that hold a mention: any byte of [first, last] can
// be the first one of a name, since names may be the ends of others.
type nameRange struct{ first, last uint64 }

// places searches the string table. ok is false if there are too many places.
func (x *tableSource) places(needles [][]byte) (list []nameRange, ok bool, err error) {
	longest := 1
	for _, n := range needles {
		longest = max(longest, len(n))
	}
	if x.im != nil && longest > len(x.buf)/2 {
		return nil, false, nil
	}
	for at := uint64(0); at < x.strings; {
		b, err := x.stringsAt(at)
		if err != nil {
			return nil, false, err
		}
		for _, needle := range needles {
			for from := 0; ; {
				i := bytes.Index(b[from:], needle)
				if i < 0 {
					break
				}
				i += from
				from = i + 1
				first := at + uint64(bytes.LastIndexByte(b[:i], 0)+1)
				if first == at && at > 0 {
					if first, ok, err = x.beginning(at); err != nil || !ok {
						return nil, false, err
					}
				}
				list = append(list, nameRange{first, at + uint64(i)})
				if len(list) > maxMentions {
					return nil, false, nil
				}
			}
		}
		at += uint64(len(b))
		if at < x.strings {
			at -= uint64(longest - 1) // for what lies across the border
		}
	}
	slices.SortFunc(list, func(a, b nameRange) int { return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.last, a.last)) })
	return slices.CompactFunc(list, func(a, b nameRange) bool { return a.first == b.first }), true, nil
}

// beginning gives the offset behind the last zero in front of off.
func (x *tableSource) beginning(off uint64) (first uint64, ok bool, err error) {
	var b [1024]byte
	for end := off; end > 0; {
		if off-end > maxNameBytes {
			return 0, false, nil
		}
		n := min(end, uint64(len(b)))
		if err := x.readStrings(b[:n], end-n); err != nil {
			return 0, false, err
		}
		if i := bytes.LastIndexByte(b[:n], 0); i >= 0 {
			return end - n + uint64(i) + 1, true, nil
		}
		end -= n
	}
	return 0, true, nil
}

// mentions gives the entries of a table whose names, versions left aside, hold one of
// the needles, in the order of the table. What they refer to may be kept. ok is false
// if that cannot be told in this way: because there are too many.
func (im *Image) mentions(t Table, needles [][]byte) (list []Sym, ok bool, err error) {
	x, err := im.source(t)
	if err != nil {
		return nil, false, err
	}
	places, ok, err := x.places(needles)
	if err != nil || !ok || len(places) == 0 {
		return nil, ok, err
	}
	low, high := uint32(places[0].first), uint32(places[len(places)-1].last)
	file := uint32(0) // the name of the last STT_FILE symbol; 0: none
	var at []entryAt
	err = x.each(func(i uint32, entry []byte) bool {
		off := binary.LittleEndian.Uint32(entry)
		if elf.SymType(entry[4]&0xf) == elf.STT_FILE {
			file = off
		}
		if off < low || off > high {
			return true
		}
		j, found := slices.BinarySearchFunc(places, uint64(off), func(r nameRange, o uint64) int { return cmp.Compare(r.first, o) })
		if !found {
			j-- // the last one that begins below
		}
		if uint64(off) <= places[j].last {
			at = append(at, entryAt{off, file})
			list = append(list, Sym{})
			fillSym(&list[len(list)-1], i, entry)
		}
		return len(list) <= maxMentions
	})
	if err != nil || len(list) > maxMentions {
		return nil, false, err
	}
	return im.complete(t, x, list, at, needles)
}

// entryAt is an entry, and where its name and that of the file above it are; 0: none.
type entryAt struct{ name, file uint32 }

// complete reads the names of entries, and drops those whose names hold no needle.
func (im *Image) complete(t Table, x *tableSource, list []Sym, at []entryAt, needles [][]byte) (full []Sym, ok bool, err error) {
	var vers *versions
	if t == Dynsym {
		vers = im.symbolVersions()
	}
	left := 16 * maxNameBytes // a hostile file has long names that overlap
	names := make(map[uint32][]byte)
	ok = true
	read := func(off uint32) []byte {
		name, known := names[off]
		if !known && ok && err == nil {
			name, ok, err = x.name(uint64(off), uint64(min(left, maxNameBytes)))
			names[off] = name
			left -= len(name)
		}
		return name
	}
	for i := range list {
		s := &list[i]
		s.Name = read(at[i].name)
		if t == Dynsym {
			s.Version, s.Hidden = vers.of(s.Index)
		} else {
			if s.Bind == elf.STB_LOCAL && at[i].file != 0 {
				s.File = read(at[i].file)
			}
			s.splitVersion()
		}
		if slices.ContainsFunc(needles, func(n []byte) bool { return bytes.Contains(s.Name, n) }) {
			full = append(full, *s)
		}
	}
	if err != nil || !ok {
		return nil, false, err
	}
	return full, true, nil
}

// mention is a function or variable whose name holds another one's.
type mention struct {
	table Table
	sym   Sym
}

// mentioned is what was found for one name in a module.
type mentioned struct {
	list   []mention // .symtab and .dynsym
	debug  []mention // what takes the place of .symtab
	looked tables    // what was looked through
}

// tables are those of a module, as they are searched together.
type tables uint8

const (
	own      tables = 1 << iota // .symtab and .dynsym
	separate                    // what takes the place of .symtab
)

// needleOf gives the part of a mangled name that the names of all have that are made
// of it: thunks have it without its prefix.
func needleOf(name string) string { return strings.TrimPrefix(name, "_Z") }

// mentionsOf finds what mentions each of some functions in some tables of a module, by
// their mangled names. ok is false if all of the tables should be read instead.
func (s *Space) mentionsOf(m *Module, names []string, in tables) (found []*mentioned, ok bool, err error) {
	if m.Image == nil || m.derived != nil || len(names) > fewNames || m.searches > maxSearches {
		return nil, false, nil
	}
	if m.mentioned == nil {
		m.mentioned = make(map[string]*mentioned)
	}
	found = make([]*mentioned, len(names))
	var inMain, inDebug [][]byte
	ok = true
	for i, name := range names {
		needle := needleOf(name)
		x := m.mentioned[needle]
		if x == nil {
			x = &mentioned{}
			m.mentioned[needle] = x
		}
		if in&^x.looked&own != 0 {
			inMain = append(inMain, []byte(needle))
		}
		if in&^x.looked&separate != 0 {
			inDebug = append(inDebug, []byte(needle))
		}
		x.looked |= in
		ok = ok && needle != "" && strings.IndexByte(needle, '@') < 0
		found[i] = x
	}
	if ok && len(inMain) > 0 {
		if m.searches++; m.searches <= maxSearches {
			ok, err = m.search(m.Image, Symtab, inMain)
		}
		if ok && err == nil {
			ok, err = m.search(m.Image, Dynsym, inMain)
		}
	}
	if ok && err == nil && len(inDebug) > 0 {
		if d := s.debugTable(m); d.image != nil {
			ok, err = m.search(d.image, d.table, inDebug)
		}
	}
	if !ok || err != nil {
		// Something may have been noted as looked for that was not.
		m.mentioned, m.searches = nil, maxSearches+1
		return nil, false, err
	}
	return found, true, nil
}

// search adds what mentions the needles in one table to what is known of them.
func (m *Module) search(im *Image, t Table, needles [][]byte) (ok bool, err error) {
	list, ok, err := im.mentions(inFile(t), needles)
	if err != nil || !ok {
		return ok, m.located(err)
	}
	for i := range list {
		if !m.named(&list[i]) {
			continue
		}
		for _, n := range needles {
			if !bytes.Contains(list[i].Name, n) {
				continue
			}
			x := m.mentioned[string(n)]
			if t > Dynsym {
				x.debug = append(x.debug, mention{t, list[i]})
			} else {
				x.list = append(x.list, mention{t, list[i]})
			}
		}
	}
	return true, nil
}
