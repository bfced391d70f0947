package trampoline

// longestCall is the length of the longest call without prefixes: FF /2 with SIB and a
// 32-bit displacement.
const longestCall = 7

// CanReturnBehind reports whether the address behind some code, of at least 7 bytes, can be
// one to which something returns: whether the bytes in front of it can be the end of a
// call, of a system call, or of a trap (Intel SDM, volume 2, CALL, SYSCALL, INT n). It looks
// at bytes only, since it is not known where the last instruction begins; so it may be true
// without reason, and is never false without. Of less than 7 bytes it says that it can.
func CanReturnBehind(code []byte) bool {
	n := len(code)
	if n < longestCall || code[n-5] == 0xe8 {
		return true
	}
	switch code[n-1] {
	case 0xcc, 0xf1: // int3, int1
		return true
	}
	switch code[n-2] {
	case 0xcd: // int n
		return true
	case 0x0f:
		if last := code[n-1]; last == 0x05 || last == 0x34 { // syscall, sysenter
			return true
		}
	}
	// FF /2 and /3, by the lengths that ModR/M and SIB can give them.
	for _, size := range []int{2, 3, 4, 6, 7} {
		if op := code[n-size+1] >> 3 & 7; code[n-size] == 0xff && (op == 2 || op == 3) {
			return true
		}
	}
	return false
}
