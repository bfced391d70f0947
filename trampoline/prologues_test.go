package trampoline

import "strings"

const f0 = 0x401000 // the entry in these tests

func nops(n int) []byte { return []byte(strings.Repeat("\x90", n)) }

// The prologues: what a compiler or an assembler wrote, and what is to become of it.
var prologues = []struct {
	name   string
	f      Function
	far    bool
	want   Patch
	fault  string // the code of the refusal, or ""
	reason string // part of its text
}{
	{
		name: "frame pointer",
		f:    Function{Code: h("55 4889e5 4883ec10 c9 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 1, f0 + 4}},
	},
	{
		name: "tail call stub",
		f:    Function{Code: h("e9 fb0f0000"), After: nops(11)},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}},
	},
	{
		name: "tail call stub, far",
		f:    Function{Code: h("e9 fb0f0000"), After: h("6666662e0f1f840000000000")},
		far:  true,
		want: Patch{Form: Far, Site: f0, Writes: []Write{{f0, 14}}, Boundaries: []uint64{f0 + 5}},
	},
	{
		name:  "4 bytes, nothing behind",
		f:     Function{Code: h("8d4701 c3")},
		fault: "short-function", reason: "4 of 5 bytes are available (4 of the function and 0 of padding)",
	},
	{
		name: "4 bytes, padding behind",
		f:    Function{Code: h("8d4701 c3"), After: h("6666 2e0f1f8400 00000000")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 3, f0 + 4}},
	},
	{
		name: "4 bytes, int3 behind",
		f:    Function{Code: h("8d4701 c3"), After: h("cccccccc")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 3, f0 + 4}},
	},
	{
		name:  "4 bytes, zeros behind",
		f:     Function{Code: h("8d4701 c3"), After: h("0000000000000000")},
		fault: "short-function", reason: "4 of 5",
	},
	{
		name:  "4 bytes, a cut nop behind",
		f:     Function{Code: h("8d4701 c3"), After: h("0f1f40")},
		fault: "short-function", reason: "4 of 5",
	},
	{
		name:  "3 bytes, one nop and then code behind",
		f:     Function{Code: h("31c0 c3"), After: h("90 55")},
		fault: "short-function", reason: "4 of 5 bytes are available (3 of the function and 1 of padding)",
	},
	{
		name:  "no bytes at all",
		f:     Function{After: nops(3)},
		fault: "short-function", reason: "0 of the function and 3 of padding",
	},
	{
		name:  "13 bytes, far",
		f:     Function{Code: h("4883ec08 31c0 31db 31c9 90 c3 90"), Before: nops(13)},
		far:   true,
		fault: "short-function", reason: "13 of 14 bytes are available (13 of the function and 0 of padding); in front of the function, 13 of 14",
	},
	{
		name: "endbr64",
		f:    Function{Code: h("f30f1efa 55 4889e5 31c0 5d c3")},
		want: Patch{Form: Near, Site: f0 + 4, Writes: []Write{{f0 + 4, 5}}, Boundaries: []uint64{f0 + 5, f0 + 8}},
	},
	{
		name:  "endbr64 and 4 bytes",
		f:     Function{Code: h("f30f1efa 31c0 90 c3")},
		fault: "short-function", reason: "4 of 5 bytes are available (4 of the function behind endbr64 and 0 of padding)",
	},
	{
		name:  "endbr64 alone",
		f:     Function{Code: h("f30f1efa"), After: nops(4)},
		fault: "short-function", reason: "4 of 5 bytes are available (0 of the function behind endbr64 and 4 of padding)",
	},
	{
		name: "loop back to +5, near",
		f:    Function{Code: h("b80a000000 ffc8 ffc8 90909090 75f6 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}},
	},
	{
		name:  "loop back to +5, far",
		f:     Function{Code: h("b80a000000 ffc8 ffc8 90909090 75f6 c3"), After: nops(8)},
		far:   true,
		fault: "branch-into-prologue", reason: "jne 0x401005 at 0x40100d goes to 0x401005, inside the 14 bytes [0x401000, 0x40100e)",
	},
	{
		name: "loop back to the entry",
		f:    Function{Code: h("ffc8 ffc8 ffc8 75f8 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 2, f0 + 4}},
	},
	{
		name: "call that returns to +9, near",
		f:    Function{Code: h("4883ec08 e800010000 4883c408 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 4}},
	},
	{
		name: "call that returns to +9, far",
		f:    Function{Code: h("4883ec08 e800010000 4883c408 c3")},
		far:  true,
		want: Patch{Form: Far, Site: f0, Writes: []Write{{f0, 14}},
			Boundaries: []uint64{f0 + 4, f0 + 9, f0 + 13}, Returns: []uint64{f0 + 9}},
	},
	{
		name: "call through a register that returns to +2",
		f:    Function{Code: h("ffd7 4883c408 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}},
			Boundaries: []uint64{f0 + 2}, Returns: []uint64{f0 + 2}},
	},
	{
		name: "call that returns to the end of what is overwritten",
		f:    Function{Code: h("e800010000 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}},
	},
	{
		name: "system call",
		f:    Function{Code: h("b027 0f05 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}},
			Boundaries: []uint64{f0 + 2, f0 + 4}, Returns: []uint64{f0 + 4}},
	},
	{
		name: "one instruction over the end",
		f:    Function{Code: h("48b8 1122334455667788 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}},
	},
	{
		name: "two NOPs and a pad of 14",
		f:    Function{Code: h("9090 c3"), Before: nops(14)},
		want: Patch{Form: Pad, Site: f0, Writes: []Write{{f0 - 5, 5}, {f0, 2}}, Boundaries: []uint64{f0 + 1}},
	},
	{
		name: "one NOP of 2 and a pad of 14",
		f:    Function{Code: h("6690 c3"), Before: nops(14)},
		want: Patch{Form: Pad, Site: f0, Writes: []Write{{f0 - 5, 5}, {f0, 2}}},
	},
	{
		name: "two NOPs and a pad of 14, far",
		f:    Function{Code: h("9090 31c0 c3"), Before: nops(14)},
		far:  true,
		want: Patch{Form: Pad, Site: f0, Writes: []Write{{f0 - 14, 14}, {f0, 2}}, Boundaries: []uint64{f0 + 1}},
	},
	{
		name: "a pad in front and padding behind, far",
		f:    Function{Code: h("9090 31c0 c3"), Before: nops(14), After: nops(14)},
		far:  true,
		want: Patch{Form: Pad, Site: f0, Writes: []Write{{f0 - 14, 14}, {f0, 2}}, Boundaries: []uint64{f0 + 1}},
	},
	{
		name: "a pad in front and padding behind, near",
		f:    Function{Code: h("6690 31c0"), Before: nops(14), After: nops(14)},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 2, f0 + 4}},
	},
	{
		name: "endbr64, two NOPs and a pad of 14, far",
		f:    Function{Code: h("f30f1efa 9090 31c0 c3"), Before: nops(14)},
		far:  true,
		want: Patch{Form: Pad, Site: f0 + 4, Writes: []Write{{f0 - 14, 14}, {f0 + 4, 2}}, Boundaries: []uint64{f0 + 5}},
	},
	{
		name: "two NOPs and a long enough function",
		f:    Function{Code: h("9090 31c0 c3"), Before: nops(14)},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 1, f0 + 2, f0 + 4}},
	},
	{
		name: "five NOPs",
		f:    Function{Code: h("9090909090 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 1, f0 + 2, f0 + 3, f0 + 4}},
	},
	{
		name: "one NOP of 5",
		f:    Function{Code: h("0f1f440000 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}},
	},
	{
		name: "1 byte and padding behind, pad in front",
		f:    Function{Code: h("c3"), After: nops(1), Before: nops(5)},
		want: Patch{Form: Pad, Site: f0, Writes: []Write{{f0 - 5, 5}, {f0, 2}}, Boundaries: []uint64{f0 + 1}},
	},
	{
		name:  "1 byte, pad in front",
		f:     Function{Code: h("c3"), Before: nops(5)},
		fault: "short-function", reason: "1 of 5 bytes are available (1 of the function and 0 of padding); in front of the function, 1 of 2",
	},
	{
		name:  "4 bytes in front",
		f:     Function{Code: h("31c0 c3"), Before: nops(4)},
		fault: "short-function", reason: "in front of the function, 4 of 5 bytes of padding are available",
	},
	{
		name:  "code in front",
		f:     Function{Code: h("31c0 c3"), Before: h("9090 c3 9090909090")},
		fault: "short-function", reason: "the byte at 0x400ffa is no padding",
	},
	{
		name: "the jump in front begins where a NOP begins",
		f:    Function{Code: h("31c0 c3"), Before: h("90 0f1f00 0f1f440000 0f1f00")},
		want: Patch{Form: Pad, Site: f0, Writes: []Write{{f0 - 8, 5}, {f0, 2}}},
	},
	{
		name: "much padding in front",
		f:    Function{Code: h("31c0 c3"), Before: nops(4000)},
		want: Patch{Form: Pad, Site: f0, Writes: []Write{{f0 - 5, 5}, {f0, 2}}},
	},
	{
		name:  "a branch into the padding in front",
		f:     Function{Code: h("75fc c3"), Before: nops(14)},
		fault: "short-function", reason: "jne 0x400ffe at 0x401000 refers to 0x400ffe in the padding [0x400ffb, 0x401000)",
	},
	{
		name: "a branch to +3, and a pad in front",
		f:    Function{Code: h("31c0 90 ffc0 75fc c3"), Before: nops(5)},
		want: Patch{Form: Pad, Site: f0, Writes: []Write{{f0 - 5, 5}, {f0, 2}}},
	},
	{
		name:  "a branch to +3",
		f:     Function{Code: h("31c0 90 ffc0 75fc c3")},
		fault: "branch-into-prologue", reason: "jne 0x401003 at 0x401005 goes to 0x401003",
	},
	{
		name: "a branch to +5, the end of what is overwritten",
		f:    Function{Code: h("31c0 90 9090 ffc0 75fc c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 2, f0 + 3, f0 + 4}},
	},
	{
		name:  "loop to +4",
		f:     Function{Code: h("31c0 31c9 90 9090 e2fb c3")},
		fault: "branch-into-prologue", reason: "loop 0x401004",
	},
	{
		name:  "jrcxz to +4",
		f:     Function{Code: h("31c0 31c9 90 9090 e3fb c3")},
		fault: "branch-into-prologue", reason: "jrcxz 0x401004",
	},
	{
		name:  "jecxz to +4",
		f:     Function{Code: h("31c0 31c9 90 90 67e3fb c3")},
		fault: "branch-into-prologue", reason: "jecxz 0x401004",
	},
	{
		name:  "xbegin to +4",
		f:     Function{Code: h("31c0 31c9 90 9090 c7f8f7ffffff c3")},
		fault: "branch-into-prologue", reason: "xbegin",
	},
	{
		name:  "jne of 6 bytes to +4",
		f:     Function{Code: h("31c0 31c9 90 9090 0f85f7ffffff c3")},
		fault: "branch-into-prologue", reason: "jne 0x401004",
	},
	{
		name:  "call to +1",
		f:     Function{Code: h("90 90 31c0 90 e8f7ffffff c3")},
		fault: "branch-into-prologue", reason: "0x401001",
	},
	{
		name: "a branch from the cold part",
		f: Function{Code: h("b90a000000 c3"), Parts: []Part{
			{Addr: 0x400800, Code: h("90 e9fe070000")},
		}},
		fault: "branch-into-prologue", reason: "0x401004 at 0x400801",
	},
	{
		name: "a cold part that branches elsewhere",
		f: Function{Code: h("b90a000000 c3"), Parts: []Part{
			{Addr: 0x400800, Code: h("90 e9ff070000")},
		}},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}},
	},
	{
		name: "a branch that only a jump into an instruction meets",
		// 5: jmp 8, and 8 is in the middle of mov $0x90f9eb90,%eax
		f:     Function{Code: h("31c0 909090 eb02 b890ebf790 c3")},
		fault: "branch-into-prologue", reason: "0x401002 at 0x401009",
	},
	{
		name: "a branch over a lock prefix",
		f:    Function{Code: h("837f0400 90 7401 f00fb13e c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 4}},
	},
	{
		name:  "the address of +2 is taken",
		f:     Function{Code: h("31c0 ffc0 90 488d05f6ffffff ffe0")},
		fault: "reference-into-prologue", reason: "lea -0xa(%rip),%rax at 0x401005 refers to 0x401002",
	},
	{
		name: "the address of the entry is taken",
		f:    Function{Code: h("31c0 ffc0 90 488d05f4ffffff ffe0")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 2, f0 + 4}},
	},
	{
		name:  "an unknown instruction",
		f:     Function{Code: h("55 4889e5 31c0 06 c3")},
		fault: "unknown-instruction", reason: "cannot decode the whole function, so a branch into its first bytes cannot be ruled out (0x401006): bytes 06 c3",
	},
	{
		name:  "data behind the last return",
		f:     Function{Code: h("55 4889e5 31c0 5d c3 06060606")},
		fault: "unknown-instruction", reason: "it stands behind the ret at 0x401007, so it may be data",
	},
	{
		name:  "an unknown instruction in a part",
		f:     Function{Code: h("55 4889e5 31c0 5d c3"), Parts: []Part{{Addr: 0x400800, Code: h("06")}}},
		fault: "unknown-instruction", reason: "(0x400800)",
	},
	{
		name:  "a branch to an unknown instruction inside another",
		f:     Function{Code: h("31c0 909090 eb02 b890060606 c3")},
		fault: "unknown-instruction", reason: "the branch at 0x401005 leads there",
	},
	{
		name:  "the end cuts an instruction",
		f:     Function{Code: h("55 4889e5 31c0 e80000"), After: nops(8)},
		fault: "unknown-instruction", reason: "cut off by the end",
	},
	{
		name: "traps inside",
		f:    Function{Code: h("55 4889e5 31c0 0f0b cccccc f4 c3")},
		want: Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}, Boundaries: []uint64{f0 + 1, f0 + 4}},
	},
	{
		name: "a page boundary inside",
		f:    Function{Addr: 0x401ffd, Code: h("b80a000000 c3")},
		want: Patch{Form: Near, Site: 0x401ffd, Writes: []Write{{0x401ffd, 5}}, Straddles: true},
	},
	{
		name: "a page boundary directly behind",
		f:    Function{Addr: 0x401ffb, Code: h("b80a000000 c3")},
		want: Patch{Form: Near, Site: 0x401ffb, Writes: []Write{{0x401ffb, 5}}},
	},
	{
		name: "a page boundary in the padding",
		f:    Function{Addr: 0x402003, Code: h("31c0 c3"), Before: nops(5)},
		want: Patch{Form: Pad, Site: 0x402003, Writes: []Write{{0x401ffe, 5}, {0x402003, 2}}, Straddles: true},
	},
	{
		name:  "the end of the address space",
		f:     Function{Addr: ^uint64(0) - 3, Code: h("b80a000000 c3")},
		fault: "bad-function-range", reason: "address space",
	},
	{
		name:  "the start of the address space",
		f:     Function{Addr: 3, Code: h("b80a000000 c3"), Before: nops(4)},
		fault: "bad-function-range", reason: "address space",
	},
	{
		name:  "a part at the end of the address space",
		f:     Function{Code: h("b80a000000 c3"), Parts: []Part{{^uint64(0) - 1, nops(4)}}},
		fault: "bad-function-range", reason: "a part of 4 bytes",
	},
	{
		name:  "a part over the padding",
		f:     Function{Code: h("31c0 c3"), After: nops(13), Parts: []Part{{f0 + 8, h("c3")}}},
		fault: "bad-function-range", reason: "overlaps",
	},
}
