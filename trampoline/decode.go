package trampoline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"golang.org/x/arch/x86/x86asm"

	"hotpatch/internal/fault"
)

// maxInst is the greatest length of an instruction in bytes; the processor
// refuses longer ones (Intel SDM volume 2, 2.3.11).
const maxInst = 15

// Flow says where a processor can go after an instruction.
type Flow int

// The flows. Only Jump, IndirectJump and Ret never go on to the next
// instruction; after a Trap a signal handler decides.
const (
	Next         Flow = iota // the next instruction
	Nop                      // the next instruction, and nothing happens
	Jump                     // Target, always
	CondJump                 // Target or the next one: jcc, loop, jrcxz, xbegin
	Call                     // Target, which may return to the next one
	IndirectJump             // anywhere
	IndirectCall             // anywhere, which may return to the next one
	Ret                      // the caller: ret, lret, iret, uiret
	Syscall                  // the kernel, which returns to the next one: syscall, sysenter, int n
	Trap                     // a signal: int3, int1, ud0, ud1, ud2, hlt
)

var flowNames = [...]string{"next", "nop", "jump", "cond-jump", "call", "indirect-jump", "indirect-call", "ret", "syscall", "trap"}

// String gives the flow's name.
func (f Flow) String() string {
	if f < 0 || int(f) >= len(flowNames) {
		return fmt.Sprintf("flow(%d)", int(f))
	}
	return flowNames[f]
}

// Inst is one decoded instruction.
type Inst struct {
	Addr  uint64 // where it stands
	Len   int    // 1 to 15 bytes
	Bytes []byte // its bytes; they alias what was given to Decode
	Op    string // mnemonic in lower case, without operand size: "mov", "vzeroupper"
	Flow  Flow

	HasTarget bool   // Target is set: a direct jump, branch or call
	Target    uint64 // where it goes

	RIPRel    bool   // it has a memory operand relative to RIP
	RIPTarget uint64 // the address of that operand, without a segment base

	asm x86asm.Inst // for String; zero where x86asm does not know the instruction
}

// Next gives the address behind the instruction.
func (in Inst) Next() uint64 { return in.Addr + uint64(in.Len) }

// Ends reports whether the processor never goes on to the next instruction.
func (in Inst) Ends() bool {
	return in.Flow == Jump || in.Flow == IndirectJump || in.Flow == Ret
}

// String gives the instruction in AT&T syntax, as objdump writes it but for
// details. Where only the length is known it gives the mnemonic alone.
func (in Inst) String() string {
	if in.asm.Op == 0 {
		return in.Op
	}
	return x86asm.GNUSyntax(in.asm, in.Addr, nil)
}

// Decode decodes the first instruction of code, which stands at addr. It looks
// at no more than 15 bytes.
//
// It refuses with "unknown-instruction" whatever it does not know for certain:
// bytes that are no instruction, instructions cut off by the end of code, and
// those whose length or target depends on the make of the processor.
func Decode(code []byte, addr uint64) (Inst, error) {
	code = code[:min(len(code), maxInst)]
	in, err := decode(code, addr)
	if err != nil {
		return Inst{}, &fault.Error{
			Kind:  fault.Unfit,
			Code:  "unknown-instruction",
			What:  "cannot decode the instruction",
			Where: fmt.Sprintf("0x%x", addr),
			Why:   fmt.Sprintf("bytes % x: %v", code, err),
		}
	}
	return in, nil
}

var (
	errUnknown   = errors.New("no instruction that is known")
	errTruncated = errors.New("cut off by the end of the bytes")
	errPrefix    = errors.New("a prefix that is not allowed in front of VEX, EVEX or XOP")
	errDisagree  = errors.New("two decoders disagree about the length")
	errData16    = errors.New("a branch with an operand-size prefix, which Intel and AMD processors decode differently")
)

func decode(code []byte, addr uint64) (Inst, error) {
	p := scanPrefixes(code)
	if p.n >= len(code) {
		return Inst{}, errTruncated
	}
	switch op := code[p.n]; {
	case op == 0xc4 || op == 0xc5 || op == 0x62:
		return decodeVEX(code, addr, p)
	case op == 0x8f && p.n+1 < len(code) && code[p.n+1]&0x1f >= 8:
		// 8f is pop only with 0 in ModRM.reg, which are the upper bits of
		// these five (AMD64 APM volume 3, 1.7.2).
		return decodeVEX(code, addr, p)
	}
	// First ours: x86asm gives the lone prefix of some of these back as an
	// instruction of one byte.
	if in, ok, err := decodeExtra(code, addr, p); ok || err != nil {
		return in, err
	}
	if rest := code[p.n:]; len(rest) > 1 && rest[0] == 0x0f && 0x20 <= rest[1] && rest[1] <= 0x23 {
		// mov to and from control and debug registers is for the kernel only.
		// It takes any ModRM.mod for 3, which x86asm does not.
		return Inst{}, errUnknown
	}
	return decodeLegacy(code, addr, p)
}

func decodeLegacy(code []byte, addr uint64, p prefixes) (Inst, error) {
	a, err := x86asm.Decode(code, 64)
	if err != nil || a.Op == 0 || a.Len <= p.n || a.Len > len(code) {
		if goesOn(code) {
			return Inst{}, errTruncated
		}
		return Inst{}, errUnknown
	}
	in := Inst{Addr: addr, Len: a.Len, Bytes: code[:a.Len], Op: opName(a.Op), asm: a}
	for i, arg := range a.Args {
		switch arg := arg.(type) {
		case x86asm.Rel:
			if p.data16 && !p.rexW {
				return Inst{}, errData16
			}
			in.HasTarget, in.Target = true, in.Next()+uint64(int64(arg))
		case x86asm.Mem:
			if arg.Base != x86asm.RIP && arg.Base != x86asm.EIP {
				continue
			}
			arg.Disp = int64(int32(arg.Disp)) // x86asm does not extend its sign
			in.asm.Args[i] = arg
			in.RIPRel, in.RIPTarget = true, in.Next()+uint64(arg.Disp)
			if arg.Base == x86asm.EIP {
				in.RIPTarget = uint64(uint32(in.RIPTarget))
			}
		}
	}
	in.Flow = flowOf(a.Op, in)
	switch {
	case a.Op == x86asm.INT && code[p.n] == 0xcc:
		in.Op, in.Flow = "int3", Trap
	case a.Op == x86asm.XCHG && NopLen(in.Bytes) == in.Len:
		in.Op, in.Flow = "nop", Nop // 66 90
	}
	return in, nil
}

// goesOn reports whether code, which is no instruction, is the beginning of one.
// x86asm does not tell the two apart.
func goesOn(code []byte) bool {
	var whole [maxInst]byte
	n := copy(whole[:], code)
	a, err := x86asm.Decode(whole[:], 64)
	return err == nil && a.Op != 0 && a.Len > n
}

func flowOf(op x86asm.Op, in Inst) Flow {
	switch op {
	case x86asm.JMP, x86asm.LJMP:
		if in.HasTarget {
			return Jump
		}
		return IndirectJump
	case x86asm.CALL, x86asm.LCALL:
		if in.HasTarget {
			return Call
		}
		return IndirectCall
	case x86asm.RET, x86asm.LRET, x86asm.IRET, x86asm.IRETD, x86asm.IRETQ:
		return Ret
	case x86asm.SYSCALL, x86asm.SYSENTER, x86asm.INT:
		return Syscall
	case x86asm.UD0, x86asm.UD1, x86asm.UD2, x86asm.ICEBP, x86asm.HLT,
		x86asm.SYSRET, x86asm.SYSEXIT: // these need the kernel's privilege
		return Trap
	case x86asm.NOP:
		return Nop
	}
	if in.HasTarget {
		return CondJump // jcc, loop, jrcxz; xbegin goes to its target on abort
	}
	return Next
}

// prefixes is what stands in front of an opcode.
type prefixes struct {
	n       int  // bytes, the REX prefix included
	data16  bool // 66
	addr32  bool // 67
	rep     byte // f2 or f3, the last of them
	lock    bool // f0
	rex     bool // a REX prefix directly in front of the opcode
	rexW    bool
	lostREX bool // a REX prefix that another prefix made void
}

// scanPrefixes reads the legacy prefixes and REX (SDM volume 2, 2.1.1, 2.2.1).
func scanPrefixes(code []byte) (p prefixes) {
	for ; p.n < len(code); p.n++ {
		b := code[p.n]
		if b&0xf0 == 0x40 {
			p.lostREX = p.lostREX || p.rex
			p.rex, p.rexW = true, b&8 != 0
			continue
		}
		switch b {
		case 0x66:
			p.data16 = true
		case 0x67:
			p.addr32 = true
		case 0xf2, 0xf3:
			p.rep = b
		case 0xf0:
			p.lock = true
		case 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65:
		default:
			return p
		}
		if p.rex {
			p.rex, p.rexW, p.lostREX = false, false, true
		}
	}
	return p
}

// modRM measures the ModRM byte at code[at] with its SIB byte and displacement
// for 64-bit mode (SDM volume 2, 2.1.5, 2.2.1.3 and 2.2.1.6). disp is the offset
// in code of a displacement relative to RIP, or 0.
func modRM(code []byte, at int) (n, disp int, err error) {
	if at >= len(code) {
		return 0, 0, errTruncated
	}
	mod, rm := code[at]>>6, code[at]&7
	n = 1
	switch {
	case mod == 3:
		return n, 0, nil
	case rm == 4:
		if at+1 >= len(code) {
			return 0, 0, errTruncated
		}
		n++
		if mod == 0 && code[at+1]&7 == 5 {
			n += 4
		}
	case mod == 0 && rm == 5:
		disp = at + 1
		n += 4
	}
	switch mod {
	case 1:
		n++
	case 2:
		n += 4
	}
	if at+n > len(code) {
		return 0, 0, errTruncated
	}
	return n, disp, nil
}

// setRIP notes the operand relative to RIP whose displacement stands at
// code[disp]; in.Len must be known.
func (in *Inst) setRIP(code []byte, disp int, addr32 bool) {
	d := int32(binary.LittleEndian.Uint32(code[disp:]))
	in.RIPRel, in.RIPTarget = true, in.Next()+uint64(int64(d))
	base := x86asm.RIP
	if addr32 {
		base, in.RIPTarget = x86asm.EIP, uint64(uint32(in.RIPTarget))
	}
	for i, arg := range in.asm.Args {
		if m, ok := arg.(x86asm.Mem); ok && m.Base == 0 && m.Index == 0 {
			m.Base = base // x86asm leaves it out for VEX and EVEX
			in.asm.Args[i] = m
		}
	}
}

// opNames holds the lower-case names that were needed already: Decode runs millions of
// times. x86asm has fewer operations than it has room for.
var opNames [1024]atomic.Pointer[string]

func opName(op x86asm.Op) string {
	if int(op) >= len(opNames) {
		return strings.ToLower(op.String())
	}
	if name := opNames[op].Load(); name != nil {
		return *name
	}
	name := strings.ToLower(op.String())
	opNames[op].Store(&name)
	return name
}
