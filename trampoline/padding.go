package trampoline

// NopLen gives the length in bytes of the padding instruction at the start of
// code, or 0 if there is none: int3, nop, and the long forms that assemblers
// and linkers fill with, which are any number of 66 and 2e prefixes in front of
// 90 or of 0f 1f /0 (SDM volume 2, NOP). pause (f3 90) is none of them.
func NopLen(code []byte) int {
	code = code[:min(len(code), maxInst)]
	if len(code) > 0 && code[0] == 0xcc {
		return 1
	}
	i := 0
	for i < len(code) && (code[i] == 0x66 || code[i] == 0x2e) {
		i++
	}
	switch {
	case i < len(code) && code[i] == 0x90:
		return i + 1
	case i+2 < len(code) && code[i] == 0x0f && code[i+1] == 0x1f && code[i+2]>>3&7 == 0:
		n, _, err := modRM(code, i+2)
		if err != nil {
			return 0
		}
		return i + 2 + n
	}
	return 0
}

// padding gives the lengths of the padding instructions at the start of code,
// up to the first byte that is none, and their sum.
func padding(code []byte) (lens []int, sum int) {
	for {
		n := NopLen(code[sum:])
		if n == 0 {
			return lens, sum
		}
		lens = append(lens, n)
		sum += n
	}
}
