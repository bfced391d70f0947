package runpre

import (
	"bytes"
	"debug/elf"
	"fmt"

	"hotpatch/internal/objfile"
	"hotpatch/trampoline"
)

// field solves a relocation whose instruction is the same in the image.
func (c *comparison) field(p *objfile.Inst, x objfile.Ref, r *trampoline.Inst) error {
	b := r.Bytes[x.Reloc.Off-p.Addr:]
	var v int64
	switch x.Reloc.Width() {
	case 0:
		if x.Reloc.Type == elf.R_X86_64_NONE {
			return nil
		}
		return fmt.Errorf("a relocation of type %v, which is not known here", x.Reloc.Type)
	case 4:
		v = int64(int32(le.Uint32(b)))
	case 8:
		v = int64(le.Uint64(b))
	default:
		return fmt.Errorf("a relocation of type %v, which is not known here", x.Reloc.Type)
	}
	rel := r.Next() + uint64(v) // of what is relative to the next instruction
	switch x.Reloc.Type {
	case elf.R_X86_64_PC32, elf.R_X86_64_PLT32, elf.R_X86_64_PC64:
		return c.address(x, rel)
	case elf.R_X86_64_32:
		return c.address(x, uint64(uint32(v)))
	case elf.R_X86_64_32S, elf.R_X86_64_64:
		return c.address(x, uint64(v))
	case elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX:
		return c.slot(x, rel)
	case elf.R_X86_64_TPOFF32:
		return c.thread(x, tpOff, v-x.Off)
	case elf.R_X86_64_DTPOFF32, elf.R_X86_64_DTPOFF64:
		if c.m.im.program { // which linkers relax throughout
			return c.thread(x, tpOff, v-x.Off)
		}
		return c.thread(x, dtpOff, v-x.Off)
	case elf.R_X86_64_GOTTPOFF:
		return c.threadSlot(x, tpSlot, rel)
	case elf.R_X86_64_TLSGD:
		return c.threadSlot(x, tlsPair, rel)
	case elf.R_X86_64_TLSLD:
		if d := c.m.im.relocs[rel]; d.typ != elf.R_X86_64_DTPMOD64 || d.name != "" {
			return fmt.Errorf("no slots for __tls_get_addr at %#x", rel)
		}
		c.s.facts = append(c.s.facts, fact{factKey{sort: tlsOwner}, rel})
		return nil
	}
	return fmt.Errorf("a relocation of type %v, which is not known here", x.Reloc.Type)
}

// register gives the register that an instruction names in ModRM.reg, or in
// ModRM.rm, for an instruction with a REX prefix or none in front of a one-byte
// opcode; opcode is that byte.
func register(b []byte) (opcode byte, reg, rm int, ok bool) {
	rex := byte(0)
	if len(b) > 0 && b[0]&0xf0 == 0x40 {
		rex, b = b[0], b[1:]
	}
	if len(b) < 2 {
		return 0, 0, 0, false
	}
	return b[0], int(b[1]>>3&7 | rex<<1&8), int(b[1]&7 | rex<<3&8), true
}

// relaxed solves a relocation whose instruction linkers have made another one
// of: psABI B.2 (GOTPCRELX), and initial-exec to local-exec.
func (c *comparison) relaxed(p *objfile.Inst, r *trampoline.Inst) error {
	x := p.Refs[0]
	switch x.Reloc.Type {
	case elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX:
		if p.Flow == trampoline.IndirectCall && r.Flow == trampoline.Call || p.Flow == trampoline.IndirectJump && r.Flow == trampoline.Jump {
			return c.address(x, r.Target)
		}
	case elf.R_X86_64_GOTTPOFF:
	default:
		return errBytes
	}
	op, reg, _, ok := register(p.Bytes)
	op2, reg2, rm2, ok2 := register(r.Bytes)
	if !ok || !ok2 || p.Len != r.Len {
		return errBytes
	}
	imm := int64(int32(le.Uint32(r.Bytes[r.Len-4:])))
	if x.Reloc.Type == elf.R_X86_64_GOTTPOFF {
		move := op == 0x8b && op2 == 0xc7
		add := op == 0x03 && (op2 == 0x81 || op2 == 0x8d && reg2 == rm2)
		if !move && !add || rm2 != reg {
			return errBytes
		}
		return c.thread(x, tpOff, imm-x.Off)
	}
	if op == 0x8b && op2 == 0x8d && r.RIPRel && reg == reg2 {
		return c.address(x, r.RIPTarget)
	}
	wide := p.Bytes[0]&0xf8 == 0x48
	value := uint64(imm)
	if !wide {
		value = uint64(uint32(imm))
	}
	// In ModRM.reg of 81 stands which operation it is: that of the opcode.
	immediate := op == 0x8b && op2 == 0xc7 && reg2&7 == 0 || op == 0x85 && op2 == 0xf7 && reg2&7 == 0 || op2 == 0x81 && op&0xc7 == 0x03 && int(op>>3) == reg2&7
	if immediate && rm2 == reg && r.Bytes[r.Len-5]>>6 == 3 {
		return c.address(x, value)
	}
	return errBytes
}

// hasThreadLocal reports whether linkers may make other code of an instruction
// and of the next one.
func hasThreadLocal(in *objfile.Inst) bool {
	for _, x := range in.Refs {
		switch x.Reloc.Type {
		case elf.R_X86_64_TLSGD, elf.R_X86_64_TLSLD, elf.R_X86_64_GOTTPOFF:
			return true
		}
	}
	return false
}

// fsBase is mov %fs:0, %rax.
var fsBase = []byte{0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0}

// threadLocalCall compares the two instructions that ask for the address of
// thread-local variables with what linkers make of them in a program. It gives
// how many instructions it has dealt with, and the size of the code in the
// image; 0 if they are to be compared as they stand.
func (c *comparison) threadLocalCall(i int, at uint64) (n int, size uint64, err error) {
	p := &c.f.insts[i]
	if len(p.Refs) != 1 || i+1 >= len(c.f.insts) {
		return 0, 0, nil
	}
	x := p.Refs[0]
	if x.Reloc.Type != elf.R_X86_64_TLSGD && x.Reloc.Type != elf.R_X86_64_TLSLD {
		return 0, 0, nil
	}
	code := c.m.im.at(at)
	prefixes := 0
	for prefixes < min(4, len(code)) && code[prefixes] == 0x66 {
		prefixes++
	}
	if !bytes.HasPrefix(code[prefixes:], fsBase) || len(code) < 16 {
		return 0, 0, nil
	}
	q := &c.f.insts[i+1]
	if len(q.Refs) != 1 || q.Refs[0].Sym.Name != "__tls_get_addr" {
		return 0, 0, fmt.Errorf("an unknown way to ask for a thread-local variable")
	}
	if x.Reloc.Type == elf.R_X86_64_TLSLD {
		return 2, uint64(prefixes + len(fsBase)), nil
	}
	imm := int64(int32(le.Uint32(code[12:])))
	switch {
	case prefixes == 0 && bytes.HasPrefix(code[9:], []byte{0x48, 0x8d, 0x80}): // lea imm(%rax), %rax
		return 2, 16, c.thread(x, tpOff, imm-x.Off)
	case prefixes == 0 && bytes.HasPrefix(code[9:], []byte{0x48, 0x03, 0x05}): // add slot(%rip), %rax
		return 2, 16, c.threadSlot(x, tpSlot, at+16+uint64(imm))
	}
	return 0, 0, errBytes
}

func (c *comparison) note(x objfile.Ref, s sort, v uint64) {
	c.s.facts = append(c.s.facts, fact{factKey{keyOf(x.Sym), s}, v})
}

// address notes that a reference leads to an address of the image.
func (c *comparison) address(x objfile.Ref, to uint64) error {
	f, y := c.f, x.Sym
	if y.Index == 0 {
		return fmt.Errorf("it refers to an absolute address")
	}
	if y.Section == f.sec {
		off := y.Value + uint64(x.Off)
		if i, ok := f.index[off]; ok && off < f.hi {
			if name, ok := c.m.im.inPLT(to); ok && off == f.lo && (name == "" || name == y.Name) {
				c.note(x, atPLT, to)
				return nil
			}
			c.jumps = append(c.jumps, jump{i, to})
			return nil
		}
	}
	if x.Off == 0 {
		if name, ok := c.m.im.inPLT(to); ok {
			if name != "" && name != y.Name {
				return fmt.Errorf("it leads to %s, and not to %s", name, y)
			}
			if name != "" {
				c.s.proofs++
			}
			c.note(x, atPLT, to)
			return nil
		}
	}
	g := c.m.funcAt(y)
	switch {
	case g != nil && (x.Off < 0 || uint64(x.Off) > g.hi-g.lo): // a number that was added to its address
		c.note(x, atAddr, to-uint64(x.Off))
		return nil
	case g != nil && x.Off != 0:
		c.s.inners = append(c.s.inners, inner{g.key(), uint64(x.Off), to})
		return nil
	}
	proofs, err := c.m.verify(y, x.Off, to, c)
	if err != nil {
		return err
	}
	c.s.proofs += proofs
	if nameless(y) || y.Type == elf.STT_SECTION && y.Section == nil {
		return nil // its content has been compared
	}
	c.note(x, atAddr, to-uint64(x.Off))
	return nil
}

// slot notes that a slot of the global offset table is that of a symbol.
func (c *comparison) slot(x objfile.Ref, at uint64) error {
	v, name, ok := c.m.im.word(at)
	if !ok {
		if d := c.m.im.relocs[at]; d.typ == elf.R_X86_64_IRELATIVE {
			c.note(x, atGOT, at)
			return nil
		}
		return fmt.Errorf("no slot of the global offset table at %#x", at)
	}
	if x.Off != 0 {
		return fmt.Errorf("it refers to a slot with an offset of %d", x.Off)
	}
	c.note(x, atGOT, at)
	switch {
	case name == x.Sym.Name:
		c.s.proofs++
	case name != "":
		return fmt.Errorf("its slot is that of %s, and not of %s", name, x.Sym)
	case v != 0:
		return c.address(x, v)
	case x.Sym.Bind != elf.STB_WEAK:
		return fmt.Errorf("its slot at %#x is empty", at)
	}
	return nil
}

// thread notes the offset of a thread-local variable.
func (c *comparison) thread(x objfile.Ref, s sort, v int64) error {
	if err := c.m.checkThread(x.Sym, s, v); err != nil {
		return err
	}
	if x.Sym.Type == elf.STT_SECTION && x.Sym.Section == nil {
		return fmt.Errorf("it refers to nothing")
	}
	c.note(x, s, uint64(v))
	return nil
}

// threadSlot notes slots of a thread-local variable.
func (c *comparison) threadSlot(x objfile.Ref, s sort, at uint64) error {
	d, ok := c.m.im.relocs[at]
	want := elf.R_X86_64_TPOFF64
	if s == tlsPair {
		want = elf.R_X86_64_DTPMOD64
	}
	switch {
	case !ok && s == tpSlot && c.m.im.program: // the offset is known at link time
		b, ok := c.m.im.bytes(at, 8)
		if !ok {
			return fmt.Errorf("no slot at %#x", at)
		}
		c.note(x, s, at)
		return c.thread(x, tpOff, int64(le.Uint64(b)))
	case !ok || d.typ != want:
		return fmt.Errorf("no slot of %s at %#x", x.Sym, at)
	case d.name != "" && d.name != x.Sym.Name:
		return fmt.Errorf("its slot is that of %s, and not of %s", d.name, x.Sym)
	case d.name != "":
		c.s.proofs++
	case s == tlsPair:
		if b, ok := c.m.im.bytes(at+8, 8); ok && c.m.im.relocs[at+8].typ == 0 {
			if err := c.thread(x, dtpOff, int64(le.Uint64(b))); err != nil {
				return err
			}
		}
	default:
		if err := c.thread(x, dtpOff, d.addend); err != nil {
			return err
		}
	}
	c.note(x, s, at)
	return nil
}
