package patchlink

import (
	"bytes"
	"debug/elf"
	"encoding/binary"

	"hotpatch/internal/objfile"
	"hotpatch/internal/patchfile"
)

// frames gives the unwind information of the code that is shipped.
func (u *unit) frames() []*objfile.Frame {
	var out []*objfile.Frame
	for _, f := range u.diff.Post.Frames {
		if u.ship[f.Code] != nil {
			out = append(out, f)
		}
	}
	return out
}

// Encodings of pointers (LSB Core 5.0, 10.5).
const (
	peUdata4         = 0x03
	pePCRelSdata4    = 0x1b
	peIndirectPCRel4 = 0x9b
)

// unwindTables makes the .eh_frame section of the shipped code. In code that is
// not position-independent, tables hold addresses in 4 bytes: these become
// relative to their places, which takes as much room.
func (u *unit) unwindTables(frames []*objfile.Frame) error {
	if len(frames) == 0 {
		return nil
	}
	s := u.obj.add(&section{name: ".eh_frame", typ: elf.SHT_PROGBITS, flags: elf.SHF_ALLOC, align: 8})
	cies := make(map[*objfile.CIE]uint64)
	for _, f := range frames {
		at, ok := cies[f.CIE]
		if !ok {
			at = uint64(len(s.data))
			cies[f.CIE] = at
			b := bytes.Clone(f.CIE.Section.Data[f.CIE.Off : f.CIE.Off+f.CIE.Size])
			relative(b)
			s.data = append(s.data, b...)
			if err := u.frameRelocs(s, f.CIE.Relocs, f.CIE.Off, at, true); err != nil {
				return err
			}
		}
		here := uint64(len(s.data))
		b := bytes.Clone(f.Section.Data[f.Off : f.Off+f.Size])
		le.PutUint32(b[4:], uint32(here+4-at))
		s.data = append(s.data, b...)
		if err := u.frameRelocs(s, f.Relocs, f.Off, here, false); err != nil {
			return err
		}
	}
	return nil
}

// frameRelocs carries over the relocations of a record that has moved from one
// offset to another.
func (u *unit) frameRelocs(s *section, relocs []objfile.Reloc, from, to uint64, cie bool) error {
	for _, r := range relocs {
		n := reloc{off: r.Off - from + to, typ: r.Type, addend: r.Addend}
		if r.Sym.Section != nil && u.ship[r.Sym.Section] == nil {
			if err := u.l.refuse(u.fault("not-shipped", r.Sym, "the unwind information of shipped code refers to it, and it is not in the patch")); err != nil {
				return err
			}
			continue
		}
		n.sym = u.symbol(r.Sym)
		switch {
		case (r.Type == elf.R_X86_64_32 || r.Type == elf.R_X86_64_32S) && cie:
			n.typ, n.sym, n.addend = elf.R_X86_64_PC32, u.indirectly(r), 0
		case r.Type == elf.R_X86_64_32 || r.Type == elf.R_X86_64_32S:
			n.typ = elf.R_X86_64_PC32
		}
		s.relocs = append(s.relocs, n)
	}
	return nil
}

// indirectly gives a word that holds the address of a personality routine.
func (u *unit) indirectly(r objfile.Reloc) *symbol {
	name := indirect + r.Sym.Name
	for _, y := range u.obj.symbols {
		if y.name == name && y.sec != nil {
			return y
		}
	}
	s := u.obj.add(&section{name: ".data.rel.ro." + name, typ: elf.SHT_PROGBITS, flags: elf.SHF_ALLOC | elf.SHF_WRITE, align: 8, data: make([]byte, 8)})
	var t target
	var err error
	pre := u.diff.Twin[r.Sym]
	if pre != nil {
		t, err = u.find(pre)
	}
	if pre != nil && err == nil && t.Kind == Addr {
		u.l.report.Bound++
		u.rec.bind(patchfile.BindAbs64, pointer{s.sym, 0}, t.image, t.Vaddr, r.Addend, r.Sym.Name)
	} else {
		u.l.imports[r.Sym.Name] = true
		s.relocs = []reloc{{typ: elf.R_X86_64_64, sym: u.symbol(r.Sym), addend: r.Addend}}
	}
	y := &symbol{name: name, typ: elf.STT_OBJECT, sec: s, size: 8}
	u.obj.symbols = append(u.obj.symbols, y)
	return y
}

// relative makes the encodings in a CIE relative to the place where they are
// absolute ones of 4 bytes. objfile has checked its form.
func relative(cie []byte) {
	aug, _, _ := bytes.Cut(cie[9:], []byte{0})
	if len(aug) == 0 || aug[0] != 'z' {
		return
	}
	at := 9 + len(aug) + 1
	skip := func() {
		_, n := binary.Uvarint(cie[at:])
		at += max(n, 1)
	}
	skip() // code alignment
	skip() // data alignment
	if cie[8] == 3 {
		skip() // return address column
	} else {
		at++
	}
	skip() // size of what follows
	for _, a := range aug[1:] {
		if at >= len(cie) {
			return
		}
		enc := cie[at]
		switch a {
		case 'L', 'R':
			if enc == peUdata4 {
				cie[at] = pePCRelSdata4
			}
			at++
		case 'P':
			if enc == peUdata4 {
				cie[at] = peIndirectPCRel4
			}
			at += 1 + pointerSize(enc)
		}
	}
}

func pointerSize(enc byte) int {
	switch enc & 0xf {
	case 0x02, 0x0a:
		return 2
	case 0x03, 0x0b:
		return 4
	}
	return 8
}
