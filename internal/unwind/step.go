package unwind

import "hotpatch/elfsym"

// state is the registers of one frame, as far as they are known.
type state struct {
	reg   [numRegs]uint64
	known uint32 // bit n: reg[n] is known
}

func newState(r Regs) state {
	return state{
		reg: [numRegs]uint64{
			regRAX: r.RAX, regRDX: r.RDX, regRCX: r.RCX, regRBX: r.RBX, regRSI: r.RSI, regRDI: r.RDI, regRBP: r.RBP, regRSP: r.RSP,
			regR8: r.R8, regR9: r.R9, regR10: r.R10, regR11: r.R11, regR12: r.R12, regR13: r.R13, regR14: r.R14, regR15: r.R15,
			regRA: r.RIP,
		},
		known: 1<<numRegs - 1,
	}
}

func (s *state) has(reg int) bool { return s.known>>reg&1 != 0 }

func (s *state) put(reg int, v uint64) {
	s.reg[reg] = v
	s.known |= 1 << reg
}

// preserved are the registers that a function gives back to its caller as they
// were (x86-64 psABI, figure 3.4). A rule is needed for the others.
const preserved = 1<<regRBX | 1<<regRBP | 1<<regR12 | 1<<regR13 | 1<<regR14 | 1<<regR15

// ending says whether and why a walk ends.
type ending struct {
	complete bool
	why      string
}

// Reasons for which a walk ends.
const (
	whyNoModule    = "it is in no module that was prepared"
	whyStale       = "its module is not mapped any more as it was"
	whyNoTable     = "its module has no unwind information that can be used"
	whyNoInfo      = "no unwind information covers it"
	whyNoStack     = "its stack pointer is in no stack"
	whyNoCFA       = "its unwind information does not say where its frame is"
	whyCFAReg      = "its frame is relative to a register whose value is not known"
	whyShrinks     = "its frame does not lie above the one that it called"
	whyLeaves      = "its frame reaches beyond the end of the stack"
	whyNoRA        = "its unwind information does not say where its return address is"
	whyRAReg       = "its return address is in a register whose value is not known"
	whyUnreadable  = "its frame cannot be read"
	whyRANoCode    = "its return address is not in executable memory"
	whyRANoCall    = "no call instruction is in front of its return address"
	whyDelivers    = "it is delivering an exception"
	whyContradicts = "its unwind information contradicts its instructions"
	whySigContext  = "the registers that the signal handler returns to cannot be read"
)

// step finds the caller of a frame. It completes the frame: its module, its end,
// and how the caller was found. Unless the walk ends it gives the registers of the caller and its frame.
func (u *Unwinder) step(s *state, f *Frame) (next state, caller Frame, end ending) {
	f.How = Unknown
	c := u.codeAt(f.Lookup())
	if c != nil {
		f.Module = c.module
	}
	if u.Stub != nil && f.Exact && u.Stub(f.PC) {
		f.How = ByStub
		return u.leaf(s, f)
	}
	switch {
	case c == nil:
		return next, caller, ending{why: whyNoModule}
	case c.stale:
		return next, caller, ending{why: whyStale}
	}
	vaddr := c.module.Vaddr(f.Lookup())
	for _, t := range c.tables {
		if d := t.find(vaddr); d != nil {
			return u.byCFI(s, f, c, t, d, vaddr)
		}
	}
	switch {
	case u.sigreturn(f.PC, f.Exact):
		f.How = BySigreturn
		return u.sigframe(s, f)
	case u.threadEnd(f.PC):
		f.How = ByExit
		return next, caller, ending{complete: true}
	}
	for _, ret := range c.entries {
		if !f.Exact && f.PC == c.module.Addr(ret) {
			f.How = ByEntry
			return next, caller, ending{complete: true}
		}
	}
	if len(c.tables) == 0 {
		return next, caller, ending{why: whyNoTable}
	}
	return next, caller, ending{why: whyNoInfo}
}

// leaf unwinds code that has its return address on top of the stack.
func (u *Unwinder) leaf(s *state, f *Frame) (next state, caller Frame, end ending) {
	next = *s
	ra, ok := u.mem.word(s.reg[regRSP], 8)
	if !ok {
		return next, caller, ending{why: whyUnreadable}
	}
	next.put(regRA, ra)
	next.put(regRSP, s.reg[regRSP]+8)
	return u.returns(s, f, next, s.reg[regRSP])
}

// byCFI unwinds by call frame information.
func (u *Unwinder) byCFI(s *state, f *Frame, c *code, t *table, d *fde, vaddr uint64) (next state, caller Frame, end ending) {
	fail := func(why string) (state, Frame, ending) { return next, caller, ending{why: why} }
	if why := u.m.find(t, d, vaddr); why != "" {
		return fail(why)
	}
	r := &u.m.row
	signal := t.cies[d.cie].signal
	switch {
	case signal:
		f.How = BySignal
	case c.inPLT(vaddr):
		f.How = ByPLT
	case c.module.Kind == elfsym.VDSO:
		f.How = ByVDSO
	default:
		f.How = ByCFI
	}
	outermost := r.regs[regRA].kind == ruleUndefined
	cfa, why := u.cfa(s, t, r)
	if outermost {
		// Where the frame ends does not matter; a mark is a mark.
		if why == "" && cfa > f.SP {
			f.CFA = cfa
		}
		f.How = ByMark
		return next, caller, ending{complete: true}
	}
	if why != "" {
		return fail(why)
	}
	var raAt uint64
	for reg := range numRegs {
		v, at, known, why := u.restore(s, t, &r.regs[reg], reg, cfa)
		switch {
		case known:
			next.put(reg, v)
		case reg == regRA || reg == regRSP:
			return fail(why)
		}
		if reg == regRA {
			raAt = at
		}
	}
	if signal {
		return u.interrupted(f, next, cfa)
	}
	if f.Exact && u.contradicts(s, &next) {
		return fail(whyContradicts)
	}
	if u.m.ehReturn && u.delivers(f.PC, c.module.Addr(d.lo), c.module.Addr(d.hi)) {
		return fail(whyDelivers)
	}
	return u.returns(s, f, next, raAt)
}

// cfa computes the canonical frame address.
func (u *Unwinder) cfa(s *state, t *table, r *row) (cfa uint64, why string) {
	switch r.cfa {
	case cfaRegister:
		if r.cfaReg >= numRegs || !s.has(int(r.cfaReg)) {
			return 0, whyCFAReg
		}
		return s.reg[r.cfaReg] + uint64(r.cfaOff), ""
	case cfaExpression:
		return u.e.eval(t.data[r.cfaExpr.start:r.cfaExpr.end], s, &u.mem, 0, false)
	}
	return 0, whyNoCFA
}

// restore finds one register of the caller, and where in memory it stood (0:
// nowhere). If it is not known, why says why that is bad for a return address.
func (u *Unwinder) restore(s *state, t *table, r *rule, reg int, cfa uint64) (v, at uint64, known bool, why string) {
	switch r.kind {
	case ruleDefault:
		switch {
		case reg == regRSP:
			return cfa, 0, true, ""
		case reg == regRA:
			return 0, 0, false, whyNoRA
		}
		return s.reg[reg], 0, preserved>>reg&1 != 0 && s.has(reg), ""
	case ruleSame:
		return s.reg[reg], 0, reg != regRA && s.has(reg), whyNoRA
	case ruleOffset:
		at = cfa + uint64(r.off)
	case ruleValOffset:
		return cfa + uint64(r.off), 0, true, ""
	case ruleRegister:
		if r.off >= numRegs || !s.has(int(r.off)) {
			return 0, 0, false, whyRAReg
		}
		return s.reg[r.off], 0, true, ""
	case ruleExpr, ruleValExpr:
		v, why := u.e.eval(t.data[r.expr.start:r.expr.end], s, &u.mem, cfa, true)
		if why != "" || r.kind == ruleValExpr {
			return v, 0, why == "", why
		}
		at = v
	default: // undefined
		return 0, 0, false, whyNoRA
	}
	v, ok := u.mem.word(at, 8)
	return v, at, ok, whyUnreadable
}

// sigframe unwinds a signal trampoline without call frame information: the
// stack pointer is at the ucontext.
func (u *Unwinder) sigframe(s *state, f *Frame) (next state, caller Frame, end ending) {
	for reg, off := range sigcontextRegs {
		v, ok := u.mem.word(s.reg[regRSP]+off, 8)
		if !ok {
			return next, caller, ending{why: whySigContext}
		}
		next.put(reg, v)
	}
	return u.interrupted(f, next, s.reg[regRSP]+sigcontextRegs[regRA]+8)
}

// interrupted makes the frame that a signal has interrupted. Its stack can be
// another one than the handler's. frameEnd is the end of what is known to belong to the signal frame.
func (u *Unwinder) interrupted(f *Frame, next state, frameEnd uint64) (state, Frame, ending) {
	sp := next.reg[regRSP]
	if _, ok := u.layout.stackEnd(sp); !ok {
		return next, Frame{}, ending{why: whyNoStack}
	}
	// On one stack everything up to the interrupted frame belongs to the signal
	// frame: the kernel's record, and the red zone.
	f.CFA = frameEnd
	if end, ok := u.layout.stackEnd(f.SP); ok && f.SP < sp && sp <= end {
		f.CFA = sp
	}
	return next, Frame{PC: next.reg[regRA], Exact: true, Signal: true, SP: sp}, ending{}
}

// returns makes the frame to which an ordinary one returns, if it is credible.
// raAt is where the return address stood, 0 if it was in a register.
func (u *Unwinder) returns(s *state, f *Frame, next state, raAt uint64) (state, Frame, ending) {
	fail := func(why string) (state, Frame, ending) { return next, Frame{}, ending{why: why} }
	sp, ra := next.reg[regRSP], next.reg[regRA]
	end, ok := u.layout.stackEnd(f.SP)
	switch {
	case !ok:
		return fail(whyNoStack)
	case sp < f.SP, sp == f.SP && raAt != 0:
		return fail(whyShrinks)
	case sp > end:
		return fail(whyLeaves)
	case raAt != 0 && (raAt < f.SP || raAt+8 > sp):
		return fail(whyShrinks)
	case !u.layout.executable(ra - 1):
		return fail(whyRANoCode)
	case !u.calls(ra) && !u.sigreturn(ra, false):
		return fail(whyRANoCall)
	}
	f.CFA = sp
	return next, Frame{PC: ra, SP: sp, At: raAt}, ending{}
}

// calls reports whether a call instruction ends at an address.
func (u *Unwinder) calls(addr uint64) bool {
	var b [7]byte
	if addr%pageSize >= 7 || addr < 7 {
		return addr >= 7 && u.mem.read(b[:], addr-7) && isCallEnd(b[:])
	}
	// The page before may belong to nobody.
	if u.mem.read(b[:], addr-7) {
		return isCallEnd(b[:])
	}
	n := addr % pageSize
	return u.mem.read(b[:n], addr-n) && isCallEnd(b[:n])
}
