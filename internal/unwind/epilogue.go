package unwind

import "encoding/binary"

// Compilers are exact about the unwind information of calls, which exceptions
// need, but not always about the instructions that put a frame up or take it
// down: at -O0, in functions that realign the stack, gcc says that %rbp is saved
// where %rbp points to already before mov %rsp,%rbp (gcc 10) and still after
// leave (gcc 10 to 14). Who is interrupted there would be unwound with a wrong
// %rbp, and a caller would be skipped. What these instructions do is easy to tell from the
// instructions themselves.

// maxEpilogue is how many instructions of an epilogue are followed.
const maxEpilogue = 32

// epilogue executes the code at the frame's PC up to the return, if nothing is
// left but to take the frame down, and gives the registers of the caller. ok is
// false if there is any other instruction on the way.
func (u *Unwinder) epilogue(s *state) (end state, ok bool) {
	end = *s
	pc := s.reg[regRA]
	var b [8]byte
	for range maxEpilogue {
		n := len(b)
		for n > 0 && !u.mem.read(b[:n], pc) {
			n-- // the end of the mapping
		}
		size, done, ok := u.takeDown(b[:n], pc, &end)
		switch {
		case !ok:
			return end, false
		case done:
			ra, ok := u.mem.word(end.reg[regRSP], 8)
			end.put(regRA, ra)
			end.put(regRSP, end.reg[regRSP]+8)
			return end, ok
		}
		pc += uint64(size)
	}
	return end, false
}

// takeDown executes one instruction that is usual in an epilogue: pop, leave,
// add to %rsp, lea to %rsp, a load of a saved register, ret. done says that the
// return is next.
func (u *Unwinder) takeDown(b []byte, pc uint64, s *state) (size int, done, ok bool) {
	if len(b) == 0 {
		return 0, false, false
	}
	rex := byte(0)
	if b[0]&0xf0 == 0x40 {
		rex, size = b[0], 1
	} else if b[0] == 0xf3 || b[0] == 0xf2 { // repz ret, bnd ret
		return 0, true, len(b) > 1 && b[1] == 0xc3
	}
	if size >= len(b) {
		return 0, false, false
	}
	op, wide := b[size], rex&8 != 0
	rest := b[size+1:]
	size++
	switch {
	case op == 0xc3 && rex == 0:
		return 0, true, true
	case op == 0xc9 && rex == 0: // leave
		s.reg[regRSP] = s.reg[regRBP]
		return size, false, s.has(regRBP) && u.pop(s, regRBP)
	case 0x58 <= op && op <= 0x5f: // pop
		return size, false, u.pop(s, dwarfNumber(op&7|rex&1<<3))
	case op == 0x83 && rex == 0x48 && len(rest) >= 2 && rest[0] == 0xc4: // add $imm8,%rsp
		s.reg[regRSP] += uint64(int64(int8(rest[1])))
		return size + 2, false, true
	case op == 0x81 && rex == 0x48 && len(rest) >= 5 && rest[0] == 0xc4: // add $imm32,%rsp
		s.reg[regRSP] += disp32(rest[1:])
		return size + 5, false, true
	case (op == 0x8d || op == 0x8b) && wide && rex&2 == 0: // lea, mov disp(base),reg
		n, base, disp, known := simpleOperand(rest, rex)
		if !known || !s.has(base) {
			return 0, false, false
		}
		reg := dwarfNumber(rest[0]>>3&7 | rex&4<<1)
		addr := s.reg[base] + disp
		if op == 0x8d {
			s.put(reg, addr)
			return size + n, false, reg == regRSP
		}
		v, ok := u.mem.word(addr, 8)
		s.put(reg, v)
		return size + n, false, ok && reg != regRSP
	}
	return 0, false, false
}

func (u *Unwinder) pop(s *state, reg int) bool {
	v, ok := u.mem.word(s.reg[regRSP], 8)
	s.put(regRSP, s.reg[regRSP]+8)
	s.put(reg, v)
	return ok && reg != regRSP
}

// simpleOperand decodes the ModRM byte of an operand disp(base) without index.
func simpleOperand(b []byte, rex byte) (size, base int, disp uint64, ok bool) {
	if len(b) < 1 {
		return 0, 0, 0, false
	}
	mod, rm := b[0]>>6, b[0]&7
	size = 1
	if rm == 4 {
		if len(b) < 2 || b[1]&0x3f != 0x24 {
			return 0, 0, 0, false
		}
		size = 2
	}
	switch b = b[size:]; {
	case mod == 0 && rm != 5:
	case mod == 1 && len(b) >= 1:
		disp = uint64(int64(int8(b[0])))
		size++
	case mod == 2 && len(b) >= 4:
		disp = disp32(b)
		size += 4
	default:
		return 0, 0, 0, false
	}
	return size, dwarfNumber(rm | rex&1<<3), disp, true
}

// dwarfNumber turns the number of a register in machine code (SDM volume 2,
// table 3-1) into the one of DWARF.
func dwarfNumber(reg byte) int {
	if reg >= 8 {
		return int(reg)
	}
	return [8]int{regRAX, regRCX, regRDX, regRBX, regRSP, regRBP, regRSI, regRDI}[reg]
}

// contradicts reports whether unwind information gives the caller other
// registers than the instructions do that a thread is about to execute.
func (u *Unwinder) contradicts(s, next *state) bool {
	var b [3]byte
	if u.mem.read(b[:], s.reg[regRA]) && (string(b[:]) == "\x48\x89\xe5" || string(b[:]) == "\x48\x8b\xec") { // mov %rsp,%rbp
		return next.has(regRBP) && next.reg[regRBP] != s.reg[regRBP] // still the caller's
	}
	end, ok := u.epilogue(s)
	if !ok {
		return false
	}
	for reg := range numRegs {
		matters := preserved>>reg&1 != 0 || reg == regRA || reg == regRSP
		if matters && next.has(reg) && end.has(reg) && next.reg[reg] != end.reg[reg] {
			return true
		}
	}
	return false
}

func disp32(b []byte) uint64 { return uint64(int64(int32(binary.LittleEndian.Uint32(b)))) }
