package trampoline

import "golang.org/x/arch/x86/x86asm"

// decodeVEX decodes an instruction with a VEX, EVEX or XOP prefix. Its length
// is computed here from the prefix, the opcode map and ModRM, which are regular
// (SDM volume 2, 2.3 and 2.7; AMD64 APM volume 3, 1.7); x86asm confirms that
// there is such an instruction, and must agree about its length.
//
// None of them is a branch; their only reference to code is an operand relative
// to RIP, and that x86asm does not tell.
func decodeVEX(code []byte, addr uint64, p prefixes) (Inst, error) {
	if p.data16 || p.rep != 0 || p.lock || p.rex || p.lostREX {
		return Inst{}, errPrefix
	}
	v, err := parseVEX(code, p.n)
	if err != nil {
		return Inst{}, err
	}
	in := Inst{Addr: addr, Op: v.name()}
	at := v.opcodeAt + 1
	disp := 0
	if in.Op != "vzeroupper" && in.Op != "vzeroall" {
		n, d, err := modRM(code, at)
		if err != nil {
			return Inst{}, err
		}
		at, disp = at+n, d
	}
	in.Len = at + v.immBytes()
	if in.Len > len(code) {
		return Inst{}, errTruncated
	}
	in.Bytes = code[:in.Len]
	if in.Op == "" {
		// x86asm knows no prefix in front of VEX, so it is given none.
		a, err := x86asm.Decode(code[p.n:], 64)
		switch {
		case err != nil || a.Op == 0:
			return Inst{}, errUnknown
		case a.Len != in.Len-p.n:
			return Inst{}, errDisagree
		}
		in.Op, in.asm = opName(a.Op), a
	}
	if disp != 0 {
		in.setRIP(code, disp, p.addr32)
	}
	return in, nil
}

// The opcode maps, as numbered in the prefixes.
const (
	map0F   = 1
	map0F38 = 2
	map0F3A = 3
	map5    = 5 // EVEX only: half precision
	map6    = 6
	mapXOP8 = 8
	mapXOP9 = 9
	mapXOPA = 10
)

// vex is a VEX, EVEX or XOP prefix with the opcode behind it.
type vex struct {
	lead     byte // c4, c5, 62 or 8f
	opMap    byte
	opcode   byte
	opcodeAt int
	pp       byte // implied prefix: 0 none, 1 66, 2 f3, 3 f2
	w, l     bool
	vvvv     byte // as encoded, that is inverted
}

func parseVEX(code []byte, at int) (vex, error) {
	v := vex{lead: code[at]}
	size := map[byte]int{0xc5: 2, 0xc4: 3, 0x8f: 3, 0x62: 4}[v.lead]
	v.opcodeAt = at + size
	if v.opcodeAt >= len(code) {
		return vex{}, errTruncated
	}
	v.opcode = code[v.opcodeAt]
	last := code[at+1] // the byte with W, vvvv, L and pp
	switch v.lead {
	case 0xc5:
		v.opMap = map0F
	case 0xc4, 0x8f:
		v.opMap, last = code[at+1]&0x1f, code[at+2]
		v.w = last&0x80 != 0
	case 0x62:
		v.opMap, last = code[at+1]&7, code[at+2]
		v.w = last&0x80 != 0
		if code[at+1]&8 != 0 || last&4 == 0 {
			return vex{}, errUnknown // APX gives these bits other meanings
		}
	}
	v.pp, v.l, v.vvvv = last&3, last&4 != 0, last>>3&0xf
	if !v.mapKnown() {
		return vex{}, errUnknown
	}
	return v, nil
}

func (v vex) mapKnown() bool {
	switch v.opMap {
	case map0F, map0F38, map0F3A:
		return v.lead != 0x8f
	case map5, map6:
		return v.lead == 0x62
	case mapXOP8, mapXOP9, mapXOPA:
		return v.lead == 0x8f
	}
	return false
}

// immBytes gives the size of the immediate.
func (v vex) immBytes() int {
	switch v.opMap {
	case map0F:
		switch v.opcode {
		case 0x70, 0x71, 0x72, 0x73, 0xc2, 0xc4, 0xc5, 0xc6:
			return 1
		}
	case map0F3A, mapXOP8:
		return 1
	case mapXOPA:
		return 4
	}
	return 0
}

// name gives the mnemonic of what x86asm does not know or measures wrongly, or
// "" for everything else.
func (v vex) name() string {
	switch {
	case v.lead == 0x8f:
		return xopNames[[2]byte{v.opMap, v.opcode}]
	case v.lead != 0x62 && v.opMap == map0F && v.opcode == 0x77 && v.pp == 0 && v.vvvv == 0xf:
		if v.l {
			return "vzeroall"
		}
		return "vzeroupper"
	case v.lead == 0xc4 && v.opMap == map0F3A && v.pp == 1:
		return fma4Names[v.opcode]
	}
	return ""
}

// fma4Names are AMD's four-operand multiply-adds, which libm carries for old
// processors (APM volume 6).
var fma4Names = map[byte]string{
	0x5c: "vfmaddsubps", 0x5d: "vfmaddsubpd", 0x5e: "vfmsubaddps", 0x5f: "vfmsubaddpd",
	0x68: "vfmaddps", 0x69: "vfmaddpd", 0x6a: "vfmaddss", 0x6b: "vfmaddsd",
	0x6c: "vfmsubps", 0x6d: "vfmsubpd", 0x6e: "vfmsubss", 0x6f: "vfmsubsd",
	0x78: "vfnmaddps", 0x79: "vfnmaddpd", 0x7a: "vfnmaddss", 0x7b: "vfnmaddsd",
	0x7c: "vfnmsubps", 0x7d: "vfnmsubpd", 0x7e: "vfnmsubss", 0x7f: "vfnmsubsd",
}

// xopNames are AMD's XOP instructions by map and opcode (APM volume 6).
var xopNames = map[[2]byte]string{
	{8, 0x85}: "vpmacssww", {8, 0x86}: "vpmacsswd", {8, 0x87}: "vpmacssdql",
	{8, 0x8e}: "vpmacssdd", {8, 0x8f}: "vpmacssdqh",
	{8, 0x95}: "vpmacsww", {8, 0x96}: "vpmacswd", {8, 0x97}: "vpmacsdql",
	{8, 0x9e}: "vpmacsdd", {8, 0x9f}: "vpmacsdqh",
	{8, 0xa2}: "vpcmov", {8, 0xa3}: "vpperm", {8, 0xa6}: "vpmadcsswd", {8, 0xb6}: "vpmadcswd",
	{8, 0xc0}: "vprotb", {8, 0xc1}: "vprotw", {8, 0xc2}: "vprotd", {8, 0xc3}: "vprotq",
	{8, 0xcc}: "vpcomb", {8, 0xcd}: "vpcomw", {8, 0xce}: "vpcomd", {8, 0xcf}: "vpcomq",
	{8, 0xec}: "vpcomub", {8, 0xed}: "vpcomuw", {8, 0xee}: "vpcomud", {8, 0xef}: "vpcomuq",
	{9, 0x80}: "vfrczps", {9, 0x81}: "vfrczpd", {9, 0x82}: "vfrczss", {9, 0x83}: "vfrczsd",
	{9, 0x90}: "vprotb", {9, 0x91}: "vprotw", {9, 0x92}: "vprotd", {9, 0x93}: "vprotq",
	{9, 0x94}: "vpshlb", {9, 0x95}: "vpshlw", {9, 0x96}: "vpshld", {9, 0x97}: "vpshlq",
	{9, 0x98}: "vpshab", {9, 0x99}: "vpshaw", {9, 0x9a}: "vpshad", {9, 0x9b}: "vpshaq",
	{9, 0xc1}: "vphaddbw", {9, 0xc2}: "vphaddbd", {9, 0xc3}: "vphaddbq",
	{9, 0xc6}: "vphaddwd", {9, 0xc7}: "vphaddwq", {9, 0xcb}: "vphadddq",
	{9, 0xd1}: "vphaddubw", {9, 0xd2}: "vphaddubd", {9, 0xd3}: "vphaddubq",
	{9, 0xd6}: "vphadduwd", {9, 0xd7}: "vphadduwq", {9, 0xdb}: "vphaddudq",
	{9, 0xe1}: "vphsubbw", {9, 0xe2}: "vphsubwd", {9, 0xe3}: "vphsubdq",
	{10, 0x10}: "bextr",
}
