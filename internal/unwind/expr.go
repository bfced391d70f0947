package unwind

// Limits of one DWARF expression. Those of compilers and of libc have about ten
// operations.
const (
	maxExprSteps = 256
	maxExprStack = 32
)

const (
	whyExpr       = "its unwind information has an expression that is not understood"
	whyExprMemory = "its unwind information refers to memory that cannot be read"
	whyExprReg    = "its unwind information needs a register whose value is not known"
)

// evaluator computes DWARF expressions (DWARF 5, 2.5) over the registers of one
// frame. It is reused.
type evaluator struct {
	stack [maxExprStack]uint64
	n     int
}

func (e *evaluator) push(v uint64) bool {
	if e.n == maxExprStack {
		return false
	}
	e.stack[e.n] = v
	e.n++
	return true
}

// pop2 takes the two topmost values: below and top.
func (e *evaluator) pop2() (below, top uint64, ok bool) {
	if e.n < 2 {
		return 0, 0, false
	}
	e.n -= 2
	return e.stack[e.n], e.stack[e.n+1], true
}

// eval computes an expression. first is pushed before it starts, if has is set
// (the CFA, for the rules of registers).
func (e *evaluator) eval(code []byte, s *state, mem *pages, first uint64, has bool) (v uint64, why string) {
	e.n = 0
	if has {
		e.push(first)
	}
	c := cursor{b: code}
	for steps := 0; !c.done(); steps++ {
		if steps == maxExprSteps {
			return 0, whyExpr
		}
		if why := e.step(&c, s, mem); why != "" {
			return 0, why
		}
		if c.bad {
			return 0, whyExpr
		}
	}
	if e.n == 0 {
		return 0, whyExpr
	}
	return e.stack[e.n-1], ""
}

// step executes one operation (DWARF 5, 7.7.1). Operations that make no sense
// for unwinding, and DW_OP_addr, whose operand a linker would have to relocate,
// are not understood.
func (e *evaluator) step(c *cursor, s *state, mem *pages) (why string) {
	op := c.u8()
	ok := true
	switch {
	case 0x30 <= op && op <= 0x4f: // lit0 … lit31
		ok = e.push(uint64(op - 0x30))
	case 0x70 <= op && op <= 0x8f: // breg0 … breg31
		return e.register(uint64(op-0x70), c.sleb(), s)
	case op == 0x92: // bregx
		reg := c.uleb()
		return e.register(reg, c.sleb(), s)
	case 0x08 <= op && op <= 0x11:
		ok = e.push(constant(op, c))
	case op == 0x06: // deref
		return e.deref(8, mem)
	case op == 0x94: // deref_size
		return e.deref(int(c.u8()), mem)
	case op == 0x96: // nop
	case op == 0x2f: // skip
		ok = c.jump(int16(c.u16()))
	case op == 0x28: // bra
		to := int16(c.u16())
		if e.n == 0 {
			return whyExpr
		}
		e.n--
		ok = e.stack[e.n] == 0 || c.jump(to)
	case 0x12 <= op && op <= 0x17:
		ok = e.shuffle(op, c)
	case op == 0x19 || op == 0x1f || op == 0x20 || op == 0x23:
		ok = e.unary(op, c)
	default:
		ok = e.binary(op)
	}
	if !ok {
		return whyExpr
	}
	return ""
}

// constant reads the operand of const1u … consts.
func constant(op byte, c *cursor) uint64 {
	switch op {
	case 0x08:
		return uint64(c.u8())
	case 0x09:
		return uint64(int64(int8(c.u8())))
	case 0x0a:
		return uint64(c.u16())
	case 0x0b:
		return uint64(int64(int16(c.u16())))
	case 0x0c:
		return uint64(c.u32())
	case 0x0d:
		return uint64(int64(int32(c.u32())))
	case 0x0e, 0x0f:
		return c.u64()
	case 0x10:
		return c.uleb()
	}
	return uint64(c.sleb())
}

// jump moves on by a number of bytes, within the expression or to its end.
func (c *cursor) jump(by int16) bool {
	to := c.at + int(by)
	if c.bad || to < 0 || to > len(c.b) {
		return false
	}
	c.at = to
	return true
}

func (e *evaluator) register(reg uint64, off int64, s *state) (why string) {
	if reg >= numRegs || !s.has(int(reg)) {
		return whyExprReg
	}
	if !e.push(s.reg[reg] + uint64(off)) {
		return whyExpr
	}
	return ""
}

func (e *evaluator) deref(size int, mem *pages) (why string) {
	if e.n == 0 || size < 1 || size > 8 {
		return whyExpr
	}
	v, ok := mem.word(e.stack[e.n-1], size)
	if !ok {
		return whyExprMemory
	}
	e.stack[e.n-1] = v
	return ""
}

// shuffle does dup, drop, over, pick, swap and rot.
func (e *evaluator) shuffle(op byte, c *cursor) bool {
	st := &e.stack
	switch op {
	case 0x12:
		return e.n > 0 && e.push(st[e.n-1])
	case 0x13:
		if e.n == 0 {
			return false
		}
		e.n--
	case 0x14:
		return e.n > 1 && e.push(st[e.n-2])
	case 0x15:
		i := int(c.u8())
		return i < e.n && e.push(st[e.n-1-i])
	case 0x16:
		if e.n < 2 {
			return false
		}
		st[e.n-1], st[e.n-2] = st[e.n-2], st[e.n-1]
	case 0x17: // the top becomes the third
		if e.n < 3 {
			return false
		}
		st[e.n-1], st[e.n-2], st[e.n-3] = st[e.n-2], st[e.n-3], st[e.n-1]
	}
	return true
}

// unary does abs, neg, not and plus_uconst.
func (e *evaluator) unary(op byte, c *cursor) bool {
	if e.n == 0 {
		return false
	}
	v := &e.stack[e.n-1]
	switch op {
	case 0x19:
		if int64(*v) < 0 {
			*v = -*v
		}
	case 0x1f:
		*v = -*v
	case 0x20:
		*v = ^*v
	case 0x23:
		*v += c.uleb()
	}
	return true
}

// binary does the operations that take two values; false for unknown ones.
func (e *evaluator) binary(op byte) bool {
	a, b, ok := e.pop2()
	if !ok {
		return false
	}
	var v uint64
	switch op {
	case 0x1a:
		v = a & b
	case 0x1b: // div, signed
		if b == 0 {
			return false
		}
		v = uint64(int64(a) / int64(b))
	case 0x1c:
		v = a - b
	case 0x1d: // mod, unsigned
		if b == 0 {
			return false
		}
		v = a % b
	case 0x1e:
		v = a * b
	case 0x21:
		v = a | b
	case 0x22:
		v = a + b
	case 0x24:
		v = a << b // 0 for 64 and more
	case 0x25:
		v = a >> b
	case 0x26:
		v = uint64(int64(a) >> b)
	case 0x27:
		v = a ^ b
	case 0x29:
		v = truth(a == b)
	case 0x2a:
		v = truth(int64(a) >= int64(b))
	case 0x2b:
		v = truth(int64(a) > int64(b))
	case 0x2c:
		v = truth(int64(a) <= int64(b))
	case 0x2d:
		v = truth(int64(a) < int64(b))
	case 0x2e:
		v = truth(a != b)
	default:
		return false
	}
	return e.push(v)
}

func truth(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
