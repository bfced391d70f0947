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
// and how the caller was found. Unless the walk ends it gives the registers of
// the caller and its frame.
func (u *Unwinder) step(s *state, f *Frame) (next state, caller Frame, end ending) {
	f.How = Unknown
	fail := func(why string) (state, Frame, ending) { return next, caller, ending{why: why} }
	k := u.lookup(f.Lookup())
	if k.code != nil {
		f.Module = k.code.module
	}
	if u.Stub != nil && f.Exact && u.Stub(f.PC) {
		f.How = ByStub
		return u.leaf(s, f)
	}
	switch {
	case k.code == nil:
		return fail(whyNoModule)
	case k.code.stale:
		return fail(whyStale)
	case k.why != "":
		return fail(k.why)
	case k.fde != nil:
		return u.byCFI(s, f, k)
	case u.sigreturn(f.PC, f.Exact):
		f.How = BySigreturn
		return u.sigframe(s, f)
	case u.threadEnd(f.PC):
		f.How = ByExit
		return next, caller, ending{complete: true}
	}
	for _, ret := range k.code.entries {
		if !f.Exact && f.PC == k.code.module.Addr(ret) {
			f.How = ByEntry
			return next, caller, ending{complete: true}
		}
	}
	if len(k.code.tables) == 0 {
		return fail(whyNoTable)
	}
	return fail(whyNoInfo)
}

// known is what the tables say of one address. It is kept: threads wait in the
// same places, and recursion returns to one.
type known struct {
	pc       uint64
	code     *code // nil: no module
	table    *table
	fde      *fde // nil: no unwind information
	why      string
	how      How
	ehReturn bool
	row      row
}

// lookup gives what is known of the code at a runtime address.
func (u *Unwinder) lookup(pc uint64) *known {
	k := &u.known[pc%uint64(len(u.known))]
	if k.pc == pc && k.code != nil {
		return k
	}
	*k = known{pc: pc, code: u.codeAt(pc)}
	if k.code == nil {
		return k
	}
	vaddr := k.code.module.Vaddr(pc)
	for _, t := range k.code.tables {
		d := t.find(vaddr)
		if d == nil {
			continue
		}
		k.table, k.fde, k.why = t, d, u.m.find(t, d, vaddr)
		k.row, k.ehReturn = u.m.row, u.m.ehReturn
		switch {
		case t.cies[d.cie].signal:
			k.how = BySignal
		case k.code.inPLT(vaddr):
			k.how = ByPLT
		case k.code.module.Kind == elfsym.VDSO:
			k.how = ByVDSO
		default:
			k.how = ByCFI
		}
		break
	}
	if k.why == whyTooLong { // that is of this walk
		pc, code := k.pc, k.code
		*k = known{pc: pc, code: code, why: whyTooLong}
		k.pc = 0
	}
	return k
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
	return u.returns(f, next, s.reg[regRSP])
}

// byCFI unwinds by call frame information.
func (u *Unwinder) byCFI(s *state, f *Frame, k *known) (next state, caller Frame, end ending) {
	fail := func(why string) (state, Frame, ending) { return next, caller, ending{why: why} }
	f.How = k.how
	cfa, why := u.cfa(s, k.table, &k.row)
	if k.row.regs[regRA].kind == ruleUndefined {
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
		v, at, ok, why := u.restore(s, k.table, &k.row.regs[reg], reg, cfa)
		switch {
		case ok:
			next.put(reg, v)
		case reg == regRA || reg == regRSP:
			return fail(why)
		}
		if reg == regRA {
			raAt = at
		}
	}
	if k.how == BySignal {
		return u.interrupted(f, next)
	}
	if f.Exact && u.contradicts(s, &next) {
		return fail(whyContradicts)
	}
	if m := k.code.module; k.ehReturn && u.delivers(f.PC, m.Addr(k.fde.lo), m.Addr(k.fde.hi)) {
		return fail(whyDelivers)
	}
	return u.returns(f, next, raAt)
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
	return u.interrupted(f, next)
}

// interrupted makes the frame that a signal has interrupted. Its stack can be
// another one than the handler's: then the signal's frame ends with what is
// known of it.
func (u *Unwinder) interrupted(f *Frame, next state) (state, Frame, ending) {
	sp := next.reg[regRSP]
	if _, ok := u.layout.stackEnd(sp); !ok {
		return next, Frame{}, ending{why: whyNoStack}
	}
	switch {
	case !u.sigreturn(f.PC, f.Exact):
		f.CFA = f.SP
	case u.sameStack(f.SP, sp):
		f.CFA = sp
	default:
		f.CFA = f.SP + sigframeSize
	}
	return next, Frame{PC: next.reg[regRA], Exact: true, Signal: true, SP: sp}, ending{}
}

// sameStack reports whether a signal handler with its ucontext at an address
// runs on the stack of the frame that it interrupted, whose stack pointer is sp.
// The ucontext tells where the alternative stack is (sigaltstack(2)); without one,
// or outside of it, the kernel has put the signal's frame right below the
// interrupted one.
func (u *Unwinder) sameStack(ucontext, sp uint64) bool {
	low, ok1 := u.mem.word(ucontext+ucStack, 8)
	size, ok2 := u.mem.word(ucontext+ucStackSize, 8)
	if !ok1 || !ok2 || sp <= ucontext {
		return false
	}
	if end, ok := u.layout.stackEnd(ucontext); !ok || sp > end {
		return false
	}
	return ucontext-low >= size || sp-low <= size
}

// returns makes the frame to which an ordinary one returns, if it is credible.
// raAt is where the return address stood, 0 if it was in a register.
func (u *Unwinder) returns(f *Frame, next state, raAt uint64) (state, Frame, ending) {
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
	}
	if checked := &u.returnable[ra%uint64(len(u.returnable))]; *checked != ra {
		switch {
		case !u.layout.executable(ra - 1):
			return fail(whyRANoCode)
		case !u.calls(ra) && !u.sigreturn(ra, false):
			return fail(whyRANoCall)
		}
		*checked = ra
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
