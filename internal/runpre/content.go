package runpre

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"slices"
	"strings"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/lazy"
	"hotpatch/trampoline"
)

// reopen gives the image once more, from bytes of its own.
func (im *Image) reopen(path string) (*elfsym.Image, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	file, err := elfsym.NewImage(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	if a, b := file.BuildID(), im.file.BuildID(); len(b) > 0 && !a.Equal(b) {
		return nil, unreadable(path, fmt.Errorf("it was replaced while it was read"))
	}
	file.SetName(path)
	return file, nil
}

// load reads the segments.
func (im *Image) load() error {
	var total uint64
	for _, p := range im.file.Segments() {
		switch p.Type {
		case elf.PT_TLS:
			align := max(p.Align, 1)
			if p.Memsz > 1<<40 || align > 1<<30 {
				return im.refuse("damaged-elf", "its thread-local variables have %d bytes", p.Memsz)
			}
			// Local-exec offsets count back from the thread pointer (variant II).
			im.hasTLS, im.tlsSize = true, int64((p.Memsz+align-1)&^(align-1))
		case elf.PT_LOAD:
			if total += p.Filesz; total > maxLoaded {
				return im.refuse("image-too-large", "%d bytes are loaded, and the limit is %d", total, uint64(maxLoaded))
			}
			s := segment{lo: p.Vaddr, hi: p.Vaddr + p.Memsz, flags: p.Flags}
			if p.Filesz > 0 {
				data, err := readChunks(im.file, p.Vaddr, p.Filesz)
				if err != nil {
					return err
				}
				s.data = data
			}
			im.segs = append(im.segs, s)
		}
	}
	return nil
}

// readChunks reads a range step by step, so that a size that the file does not
// have costs no memory.
func readChunks(file *elfsym.Image, vaddr, size uint64) ([]byte, error) {
	const step = 16 << 20
	var data []byte
	for uint64(len(data)) < size {
		n := min(step, size-uint64(len(data)))
		at := len(data)
		data = slices.Grow(data, int(n))[:at+int(n)]
		if err := file.ReadVaddr(data[at:], vaddr+uint64(at)); err != nil {
			return nil, err
		}
	}
	return data, nil
}

func (im *Image) refuse(code, format string, args ...any) error {
	return &fault.Error{Kind: fault.Unfit, Code: code, What: "cannot compare with this image", Where: im.name, Why: fmt.Sprintf(format, args...)}
}

// seg gives the segment that an address lies in.
func (im *Image) seg(vaddr uint64) *segment {
	for i := range im.segs {
		if s := &im.segs[i]; s.lo <= vaddr && vaddr < s.hi {
			return s
		}
	}
	return nil
}

// at gives the content from an address to the end of its segment's file content.
func (im *Image) at(vaddr uint64) []byte {
	s := im.seg(vaddr)
	if s == nil || vaddr-s.lo >= uint64(len(s.data)) {
		return nil
	}
	return s.data[vaddr-s.lo:]
}

// bytes gives n bytes at an address, zeros behind the file's content included.
func (im *Image) bytes(vaddr, n uint64) ([]byte, bool) {
	if b := im.at(vaddr); uint64(len(b)) >= n {
		return b[:n], true
	}
	s := im.seg(vaddr)
	if s == nil || n > s.hi-vaddr {
		return nil, false
	}
	return append(slices.Clone(im.at(vaddr)), make([]byte, n-uint64(len(im.at(vaddr))))...), true
}

func (im *Image) executable(vaddr uint64) bool {
	s := im.seg(vaddr)
	return s != nil && s.flags&elf.PF_X != 0
}

// dynamic reads the dynamic relocations.
func (im *Image) dynamic() error {
	for _, s := range im.file.Sections() {
		if s.Flags&elf.SHF_EXECINSTR != 0 && (strings.HasPrefix(s.Name, ".plt") || strings.HasPrefix(s.Name, ".iplt")) {
			im.plt = append(im.plt, s)
		}
	}
	var failed error
	err := im.file.Relocs(func(r elfsym.Reloc) bool {
		d := dynReloc{typ: r.Type, addend: r.Addend}
		if r.Sym != 0 {
			y, err := im.file.DynSym(r.Sym)
			if err != nil {
				failed = err
				return false
			}
			d.name = string(y.Name)
		}
		if r.Type == elf.R_X86_64_COPY {
			im.copies[r.Off] = d.name
		} else {
			im.relocs[r.Off] = d
		}
		return true
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	return im.file.RelativeWords(func(at uint64) bool {
		if b, ok := im.bytes(at, 8); ok {
			im.relocs[at] = dynReloc{typ: elf.R_X86_64_RELATIVE, addend: int64(le.Uint64(b))}
		}
		return true
	})
}

// word gives what a word of 8 bytes holds once the image is loaded at its
// link-time address, or the symbol by which the dynamic linker will know.
func (im *Image) word(at uint64) (value uint64, name string, ok bool) {
	if d, found := im.relocs[at]; found {
		switch d.typ {
		case elf.R_X86_64_RELATIVE:
			return uint64(d.addend), "", true
		case elf.R_X86_64_64, elf.R_X86_64_GLOB_DAT, elf.R_X86_64_JMP_SLOT:
			return uint64(d.addend), d.name, d.name != ""
		}
		return 0, "", false
	}
	b, ok := im.bytes(at, 8)
	if !ok {
		return 0, "", false
	}
	return le.Uint64(b), "", true
}

// inPLT reports whether an address is that of an entry of the procedure linkage
// table, and the name of what it leads to; that is empty for one of the image's
// own indirect functions.
func (im *Image) inPLT(at uint64) (name string, ok bool) {
	if !slices.ContainsFunc(im.plt, func(s elfsym.Section) bool { return s.Contains(at) }) {
		return "", false
	}
	for range 2 { // endbr64 may stand in front
		in, err := trampoline.Decode(im.at(at), at)
		if err != nil {
			return "", false
		}
		if in.Flow == trampoline.IndirectJump && in.RIPRel {
			d, ok := im.relocs[in.RIPTarget]
			return d.name, ok
		}
		at = in.Next()
	}
	return "", false
}

var numbers = lazy.Regexp(`\.[0-9]+`)

// stem is a name without the numbers that compilers append to static ones.
func stem(name string) string { return numbers().ReplaceAllString(name, "") }

// symbols reads the symbol tables.
func (im *Image) symbols(tables []*elfsym.Image) error {
	for i, file := range tables {
		for _, t := range []elfsym.Table{elfsym.Symtab, elfsym.Dynsym} {
			if t == elfsym.Symtab && file.HasSymtab() {
				im.full = true
			}
			if t == elfsym.Dynsym && i > 0 {
				continue // that of a debug file has no content
			}
			err := file.Symbols(t, func(y *elfsym.Sym) bool {
				im.symbol(t, y)
				return true
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (im *Image) symbol(t elfsym.Table, y *elfsym.Sym) {
	name := string(y.Name)
	if y.Section == elf.SHN_UNDEF {
		if t == elfsym.Dynsym && name != "" {
			im.imports[name] = y.Value
		}
		return
	}
	if name == "" || y.Section == elf.SHN_ABS || y.Type == elf.STT_FILE || y.Type == elf.STT_SECTION {
		return
	}
	n := symbol{value: y.Value, size: y.Size, typ: y.Type, bind: y.Bind}
	if y.Bind == elf.STB_LOCAL {
		n.file, name = string(y.File), stem(name)
	}
	isFunc := y.Type == elf.STT_FUNC || y.Type == elf.STT_GNU_IFUNC
	if isFunc && t == elfsym.Symtab && y.Bind == elf.STB_LOCAL && n.file != "" {
		im.locals = true
	}
	for _, o := range im.names[name] {
		if o.value == n.value && o.file == n.file && o.typ == n.typ {
			return
		}
	}
	im.names[name] = append(im.names[name], n)
	if isFunc && im.executable(y.Value) {
		im.starts = append(im.starts, y.Value)
	}
}

// frames takes the starts of functions from the sorted table of .eh_frame_hdr
// (LSB Core 5.0, 10.6.2), which stripped images have too.
func (im *Image) frames() {
	for _, p := range im.file.Segments() {
		if p.Type != elf.PT_GNU_EH_FRAME || p.Memsz < 12 {
			continue
		}
		b, ok := im.bytes(p.Vaddr, p.Memsz)
		const udata4, table = 0x03, 0x3b // the table: sdata4, relative to the header
		if !ok || b[0] != 1 || b[1]&0xf != 0xb && b[1]&0xf != 0x3 || b[2] != udata4 || b[3] != table {
			return
		}
		n := uint64(le.Uint32(b[8:]))
		for b = b[12:]; n > 0 && len(b) >= 8; n, b = n-1, b[8:] {
			at := p.Vaddr + uint64(int64(int32(le.Uint32(b))))
			if im.executable(at) {
				im.starts = append(im.starts, at)
			}
		}
	}
}
