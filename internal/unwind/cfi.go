package unwind

// DWARF register numbers (x86-64 psABI, figure 3.36). Numbers above regRA are
// vector, flag and segment registers, whose rules do not matter here.
const (
	regRAX = iota
	regRDX
	regRCX
	regRBX
	regRSI
	regRDI
	regRBP
	regRSP
	regR8
	regR9
	regR10
	regR11
	regR12
	regR13
	regR14
	regR15
	regRA // the return address, and RIP in expressions
	numRegs
)

// ruleKind says how a register of the caller is found (DWARF 5, 6.4.1).
type ruleKind uint8

const (
	ruleDefault   ruleKind = iota // nothing was said
	ruleUndefined                 // it cannot be recovered
	ruleSame
	ruleOffset    // stored at CFA+off
	ruleValOffset // is CFA+off
	ruleRegister  // is in register off
	ruleExpr      // stored where an expression says
	ruleValExpr   // is what an expression says
)

// span is a piece of the table's data.
type span struct{ start, end uint32 }

type rule struct {
	kind ruleKind
	off  int64
	expr span
}

// row is how to unwind from one address: how to compute the canonical frame
// address (CFA) and the registers of the caller.
type row struct {
	cfaReg  uint64
	cfaOff  int64
	cfaExpr span
	cfa     cfaKind
	regs    [numRegs]rule
}

type cfaKind uint8

const (
	cfaNone cfaKind = iota
	cfaRegister
	cfaExpression
)

// maxRemembered is how deep remember_state may nest. Compilers use 1 or 2.
const maxRemembered = 8

// machine interprets call frame instructions. It is reused, so that a walk does
// not allocate.
type machine struct {
	row        row
	initial    row
	remembered [maxRemembered]row
	depth      int
	steps      int // instructions that may still be executed

	// ehReturn says that the function saves the registers in which a landing pad
	// gets its arguments, which only those that deliver exceptions do.
	ehReturn bool
}

// Reasons are constant strings: they are made while the process is stopped.
const (
	whyDamaged  = "its unwind information is damaged"
	whyUnknown  = "its unwind information has an instruction that is not known"
	whyTooLong  = "its unwind information is too long"
	whyClash    = "two records of unwind information contradict each other there"
	whyRemember = "its unwind information nests remember_state too deeply"
)

// find computes the row for a link-time address inside the FDE. It leaves it in
// m.row, and gives why not, or "".
func (m *machine) find(t *table, f *fde, vaddr uint64) (why string) {
	if f.clash {
		return whyClash
	}
	m.row, m.depth, m.ehReturn = row{}, 0, false
	c := &t.cies[f.cie]
	if why := m.run(t, c, span{c.start, c.end}, f.lo, ^uint64(0), false); why != "" {
		return why
	}
	m.initial, m.depth = m.row, 0
	return m.run(t, c, span{f.start, f.end}, f.lo, vaddr, true)
}

// run executes a program up to the row that holds the address. own is false for
// the instructions of the CIE, which have no initial row to go back to and cannot advance.
func (m *machine) run(t *table, ci *cie, program span, loc, vaddr uint64, own bool) (why string) {
	c := cursor{b: t.data[:program.end], at: int(program.start)}
	for !c.done() {
		if m.steps--; m.steps < 0 {
			return whyTooLong
		}
		op := c.u8()
		low := uint64(op & 0x3f)
		next, moves := loc, false
		switch op & 0xc0 {
		case 0x40: // advance_loc
			next, moves = loc+low*ci.codeAlign, true
		case 0x80: // offset
			m.set(low, rule{kind: ruleOffset, off: int64(c.uleb()) * ci.dataAlign})
		case 0xc0: // restore
			m.restore(low, own)
		default:
			switch op {
			case 0x01: // set_loc
				next, moves = c.pointer(ci.pointers, t.addr), true
			case 0x02: // advance_loc1
				next, moves = loc+uint64(c.u8())*ci.codeAlign, true
			case 0x03: // advance_loc2
				next, moves = loc+uint64(c.u16())*ci.codeAlign, true
			case 0x04: // advance_loc4
				next, moves = loc+uint64(c.u32())*ci.codeAlign, true
			default:
				if why := m.simple(ci, op, &c, own); why != "" {
					return why
				}
			}
		}
		if c.bad {
			return whyDamaged
		}
		if moves {
			if !own || next < loc {
				return whyDamaged
			}
			if next > vaddr {
				return ""
			}
			loc = next
		}
	}
	return ""
}

// simple executes an instruction that does not move on (DWARF 5, 6.4.2).
func (m *machine) simple(ci *cie, op byte, c *cursor, own bool) (why string) {
	switch op {
	case 0x00: // nop
	case 0x05: // offset_extended
		reg := c.uleb()
		m.set(reg, rule{kind: ruleOffset, off: int64(c.uleb()) * ci.dataAlign})
	case 0x06: // restore_extended
		m.restore(c.uleb(), own)
	case 0x07: // undefined
		m.set(c.uleb(), rule{kind: ruleUndefined})
	case 0x08: // same_value
		m.set(c.uleb(), rule{kind: ruleSame})
	case 0x09: // register
		reg := c.uleb()
		m.set(reg, rule{kind: ruleRegister, off: int64(min(c.uleb(), numRegs))})
	case 0x0a: // remember_state
		if m.depth == maxRemembered {
			return whyRemember
		}
		m.remembered[m.depth] = m.row
		m.depth++
	case 0x0b: // restore_state
		if m.depth == 0 {
			return whyDamaged
		}
		m.depth--
		m.row = m.remembered[m.depth]
	case 0x0c: // def_cfa
		m.row.cfa, m.row.cfaReg = cfaRegister, c.uleb()
		m.row.cfaOff = int64(c.uleb())
	case 0x0d: // def_cfa_register
		if m.row.cfa != cfaRegister {
			return whyDamaged
		}
		m.row.cfaReg = c.uleb()
	case 0x0e: // def_cfa_offset
		if m.row.cfa != cfaRegister {
			return whyDamaged
		}
		m.row.cfaOff = int64(c.uleb())
	case 0x0f: // def_cfa_expression
		m.row.cfa, m.row.cfaExpr = cfaExpression, block(c)
	case 0x10: // expression
		reg := c.uleb()
		m.set(reg, rule{kind: ruleExpr, expr: block(c)})
	case 0x11: // offset_extended_sf
		reg := c.uleb()
		m.set(reg, rule{kind: ruleOffset, off: c.sleb() * ci.dataAlign})
	case 0x12: // def_cfa_sf
		m.row.cfa, m.row.cfaReg = cfaRegister, c.uleb()
		m.row.cfaOff = c.sleb() * ci.dataAlign
	case 0x13: // def_cfa_offset_sf
		if m.row.cfa != cfaRegister {
			return whyDamaged
		}
		m.row.cfaOff = c.sleb() * ci.dataAlign
	case 0x14: // val_offset
		reg := c.uleb()
		m.set(reg, rule{kind: ruleValOffset, off: int64(c.uleb()) * ci.dataAlign})
	case 0x15: // val_offset_sf
		reg := c.uleb()
		m.set(reg, rule{kind: ruleValOffset, off: c.sleb() * ci.dataAlign})
	case 0x16: // val_expression
		reg := c.uleb()
		m.set(reg, rule{kind: ruleValExpr, expr: block(c)})
	case 0x2e: // GNU_args_size: for landing pads only
		c.uleb()
	case 0x2f: // GNU_negative_offset_extended
		reg := c.uleb()
		m.set(reg, rule{kind: ruleOffset, off: -int64(c.uleb()) * ci.dataAlign})
	default:
		return whyUnknown
	}
	return ""
}

// set sets the rule of a register that matters.
func (m *machine) set(reg uint64, r rule) {
	if reg < numRegs {
		m.row.regs[reg] = r
		m.ehReturn = m.ehReturn || reg <= regRDX && r.kind == ruleOffset
	}
}

// restore gives a register the rule back that the CIE has for it.
func (m *machine) restore(reg uint64, own bool) {
	if !own {
		m.set(reg, rule{})
	} else if reg < numRegs {
		m.row.regs[reg] = m.initial.regs[reg]
	}
}

// block reads an expression: its length and its bytes.
func block(c *cursor) span {
	b := c.take(c.uleb())
	return span{uint32(c.at - len(b)), uint32(c.at)}
}
