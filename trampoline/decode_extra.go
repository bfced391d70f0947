package trampoline

// An extra is a legacy instruction that x86asm refuses or measures wrongly.
// All of them have the opcode map 0f, 0f 38 or 0f 3a and a ModRM byte.
type extra struct {
	opMap  byte
	opcode byte
	pp     byte   // prefix: 0 none, 0x66, 0xf2, 0xf3, or anyPP
	mod    modSet // what ModRM.mod has to be
	reg    int    // ModRM.reg (0 to 7), or anyReg
	rm     int    // ModRM.rm (0 to 7), or anyReg
	name   string
	flow   Flow
}

type modSet byte

const (
	memOnly modSet = 1 << iota // mod 0, 1 and 2
	regOnly                    // mod 3
	anyMod  = memOnly | regOnly
)

const (
	anyReg = -1
	anyPP  = 0xff
)

// The references are to SDM volume 2 where nothing else is said. The first row
// that matches counts.
var extras = []extra{
	// Landing pads and shadow stack (SDM volume 1, chapter 17).
	{map0F, 0x1e, 0xf3, regOnly, 7, 2, "endbr64", Next},
	{map0F, 0x1e, 0xf3, regOnly, 7, 3, "endbr32", Next},
	{map0F, 0x1e, 0xf3, regOnly, 1, anyReg, "rdssp", Next},
	{map0F, 0xae, 0xf3, regOnly, 5, anyReg, "incssp", Next},
	{map0F, 0xae, 0xf3, memOnly, 6, anyReg, "clrssbsy", Next},
	{map0F, 0x01, 0xf3, memOnly, 5, anyReg, "rstorssp", Next},
	{map0F, 0x01, 0xf3, regOnly, 5, 0, "setssbsy", Next},
	{map0F, 0x01, 0xf3, regOnly, 5, 2, "saveprevssp", Next},
	{map0F38, 0xf6, 0, memOnly, anyReg, anyReg, "wrss", Next},
	{map0F38, 0xf5, 0x66, memOnly, anyReg, anyReg, "wruss", Next},

	// Reserved NOPs, and the hints that processors made of some of them.
	{map0F, 0x18, anyPP, memOnly, 0, anyReg, "prefetchnta", Next},
	{map0F, 0x18, anyPP, memOnly, 1, anyReg, "prefetcht0", Next},
	{map0F, 0x18, anyPP, memOnly, 2, anyReg, "prefetcht1", Next},
	{map0F, 0x18, anyPP, memOnly, 3, anyReg, "prefetcht2", Next},
	{map0F, 0x18, anyPP, anyMod, anyReg, anyReg, "nop", Nop},
	{map0F, 0x1c, 0, memOnly, 0, anyReg, "cldemote", Next},
	{map0F, 0x19, anyPP, anyMod, anyReg, anyReg, "nop", Nop},
	{map0F, 0x1c, anyPP, anyMod, anyReg, anyReg, "nop", Nop},
	{map0F, 0x1d, anyPP, anyMod, anyReg, anyReg, "nop", Nop},
	{map0F, 0x1e, anyPP, anyMod, anyReg, anyReg, "nop", Nop},

	// Protection keys, transactions, user interrupts, waiting.
	{map0F, 0x01, 0, regOnly, 5, 6, "rdpkru", Next},
	{map0F, 0x01, 0, regOnly, 5, 7, "wrpkru", Next},
	{map0F, 0x01, 0, regOnly, 5, 0, "serialize", Next},
	{map0F, 0x01, 0xf2, regOnly, 5, 0, "xsusldtrk", Next},
	{map0F, 0x01, 0xf2, regOnly, 5, 1, "xresldtrk", Next},
	{map0F, 0x01, 0xf3, regOnly, 5, 4, "uiret", Ret},
	{map0F, 0x01, 0xf3, regOnly, 5, 5, "testui", Next},
	{map0F, 0x01, 0xf3, regOnly, 5, 6, "clui", Next},
	{map0F, 0x01, 0xf3, regOnly, 5, 7, "stui", Next},
	{map0F, 0x01, 0, regOnly, 7, 2, "monitorx", Next}, // APM volume 3
	{map0F, 0x01, 0, regOnly, 7, 3, "mwaitx", Next},
	{map0F, 0x01, 0, regOnly, 7, 4, "clzero", Next},
	{map0F, 0x01, 0, regOnly, 7, 5, "rdpru", Next},
	{map0F, 0xc7, 0xf3, regOnly, 6, anyReg, "senduipi", Next},
	{map0F, 0xae, 0xf3, regOnly, 6, anyReg, "umonitor", Next},
	{map0F, 0xae, 0xf2, regOnly, 6, anyReg, "umwait", Next},
	{map0F, 0xae, 0x66, regOnly, 6, anyReg, "tpause", Next},

	// Random numbers, processor number, tracing, cache lines.
	{map0F, 0xc7, 0, regOnly, 7, anyReg, "rdseed", Next},
	{map0F, 0xc7, 0x66, regOnly, 7, anyReg, "rdseed", Next},
	{map0F, 0xc7, 0xf3, regOnly, 7, anyReg, "rdpid", Next},
	{map0F, 0xae, 0xf3, anyMod, 4, anyReg, "ptwrite", Next},
	{map0F, 0xae, 0x66, memOnly, 6, anyReg, "clwb", Next},
	{map0F, 0xae, 0x66, memOnly, 7, anyReg, "clflushopt", Next},

	// Arithmetic and stores.
	{map0F38, 0xf6, 0x66, anyMod, anyReg, anyReg, "adcx", Next},
	{map0F38, 0xf6, 0xf3, anyMod, anyReg, anyReg, "adox", Next},
	{map0F38, 0xf9, 0, memOnly, anyReg, anyReg, "movdiri", Next},
	{map0F38, 0xf8, 0x66, memOnly, anyReg, anyReg, "movdir64b", Next},
	{map0F38, 0xf8, 0xf2, memOnly, anyReg, anyReg, "enqcmd", Next},
	{map0F38, 0xf8, 0xf3, memOnly, anyReg, anyReg, "enqcmds", Next},

	// Cryptography.
	{map0F38, 0xc8, 0, anyMod, anyReg, anyReg, "sha1nexte", Next},
	{map0F38, 0xc9, 0, anyMod, anyReg, anyReg, "sha1msg1", Next},
	{map0F38, 0xca, 0, anyMod, anyReg, anyReg, "sha1msg2", Next},
	{map0F38, 0xcb, 0, anyMod, anyReg, anyReg, "sha256rnds2", Next},
	{map0F38, 0xcc, 0, anyMod, anyReg, anyReg, "sha256msg1", Next},
	{map0F38, 0xcd, 0, anyMod, anyReg, anyReg, "sha256msg2", Next},
	{map0F38, 0xcf, 0x66, anyMod, anyReg, anyReg, "gf2p8mulb", Next},
	{map0F3A, 0xcc, 0, anyMod, anyReg, anyReg, "sha1rnds4", Next},
	{map0F3A, 0xce, 0x66, anyMod, anyReg, anyReg, "gf2p8affineqb", Next},
	{map0F3A, 0xcf, 0x66, anyMod, anyReg, anyReg, "gf2p8affineinvqb", Next},
}

// decodeExtra decodes an instruction of the table. ok is false if it is none;
// an error means that it would be one, but is cut off.
func decodeExtra(code []byte, addr uint64, p prefixes) (in Inst, ok bool, err error) {
	at := p.n
	if code[at] != 0x0f || at+1 >= len(code) {
		return Inst{}, false, nil
	}
	opMap, imm := byte(map0F), 0
	at++
	switch code[at] {
	case 0x38:
		opMap, at = map0F38, at+1
	case 0x3a:
		opMap, at, imm = map0F3A, at+1, 1
	}
	if at+1 >= len(code) {
		return Inst{}, false, nil
	}
	if p.lock || p.lostREX {
		return Inst{}, false, nil // x86asm is to judge; none of these takes a lock
	}
	x, ok := findExtra(opMap, code[at], p, code[at+1])
	if !ok {
		return Inst{}, false, nil
	}
	n, disp, err := modRM(code, at+1)
	if err != nil {
		return Inst{}, false, err
	}
	in = Inst{Addr: addr, Len: at + 1 + n + imm, Op: x.name, Flow: x.flow}
	if in.Len > len(code) {
		return Inst{}, false, errTruncated
	}
	in.Bytes = code[:in.Len]
	if disp != 0 {
		in.setRIP(code, disp, p.addr32)
	}
	return in, true, nil
}

// findExtra looks the table up. f2 and f3 count before 66 (SDM volume 2, 2.1.2).
func findExtra(opMap, opcode byte, p prefixes, modrm byte) (extra, bool) {
	pp := p.rep
	if pp == 0 && p.data16 {
		pp = 0x66
	}
	mod := memOnly
	if modrm>>6 == 3 {
		mod = regOnly
	}
	reg, rm := int(modrm>>3&7), int(modrm&7)
	for _, x := range extras {
		if x.opMap == opMap && x.opcode == opcode &&
			(x.pp == pp || x.pp == anyPP) &&
			x.mod&mod != 0 &&
			(x.reg == reg || x.reg == anyReg) &&
			(x.rm == rm || x.rm == anyReg) {
			return x, true
		}
	}
	return extra{}, false
}
