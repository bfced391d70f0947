package trampoline

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"hotpatch/internal/fault"
)

// h decodes hexadecimal; spaces are for the reader.
func h(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func TestDecode(t *testing.T) {
	t.Parallel()
	const at = 0x1000
	tests := []struct {
		code   string // the instruction
		op     string
		flow   Flow
		target uint64 // 0: none
		rip    uint64 // 0: none
	}{
		// What x86asm gets wrong by itself.
		{"f30f1efa", "endbr64", Next, 0, 0},
		{"f30f1efb", "endbr32", Next, 0, 0},
		{"f30f1ec8", "rdssp", Next, 0, 0},
		{"f3480f1ec8", "rdssp", Next, 0, 0},
		{"c5f877", "vzeroupper", Next, 0, 0},
		{"c5fc77", "vzeroall", Next, 0, 0},
		{"c4e17877", "vzeroupper", Next, 0, 0},
		{"c4e17c77", "vzeroall", Next, 0, 0},
		{"c5fc2805 10000000", "vmovaps", Next, 0, 0x1018},
		{"c5fc2805 f0ffffff", "vmovaps", Next, 0, 0xff8},
		{"c4e27d1805 10000000", "vbroadcastss", Next, 0, 0x1019},
		{"c4e37d0605 10000000 31", "vperm2f128", Next, 0, 0x101a},
		{"62f17c485805 10000000", "vaddps", Next, 0, 0x101a},
		{"64c5fc2805 10000000", "vmovaps", Next, 0, 0x1019},
		{"67c5fc2805 10000000", "vmovaps", Next, 0, 0x1019},
		{"660f38f6c1", "adcx", Next, 0, 0},
		{"f3480f38f605 10000000", "adox", Next, 0, 0x101a},
		{"f30fc7f8", "rdpid", Next, 0, 0},
		{"480fc7f8", "rdseed", Next, 0, 0},
		{"0f01ee", "rdpkru", Next, 0, 0},
		{"8fe97880c1", "vfrczps", Next, 0, 0},
		{"8fea781005 10000000 11223344", "bextr", Next, 0, 0x101d},
		{"c4e3f96905 10000000 20", "vfmaddpd", Next, 0, 0x101a},
		{"0f3accc103", "sha1rnds4", Next, 0, 0},
		{"488d05 f9ffffff", "lea", Next, 0, 0x1000},
		{"678b05 10000000", "mov", Next, 0, 0x1017},

		// Branches.
		{"e9 fbffffff", "jmp", Jump, 0x1000, 0},
		{"eb 10", "jmp", Jump, 0x1012, 0},
		{"f2e9 10000000", "jmp", Jump, 0x1016, 0},
		{"75 f0", "jne", CondJump, 0xff2, 0},
		{"0f85 f0ffffff", "jne", CondJump, 0xff6, 0},
		{"2e74 10", "je", CondJump, 0x1013, 0},
		{"e2 10", "loop", CondJump, 0x1012, 0},
		{"e1 10", "loope", CondJump, 0x1012, 0},
		{"e0 10", "loopne", CondJump, 0x1012, 0},
		{"e3 10", "jrcxz", CondJump, 0x1012, 0},
		{"67e3 10", "jecxz", CondJump, 0x1013, 0},
		{"c7f8 10000000", "xbegin", CondJump, 0x1016, 0},
		{"e8 10000000", "call", Call, 0x1015, 0},
		{"67e8 10000000", "call", Call, 0x1016, 0},
		{"666648e8 10000000", "call", Call, 0x1018, 0},
		{"ffe0", "jmp", IndirectJump, 0, 0},
		{"3effe0", "jmp", IndirectJump, 0, 0},
		{"ff25 10000000", "jmp", IndirectJump, 0, 0x1016},
		{"ff15 10000000", "call", IndirectCall, 0, 0x1016},
		{"ffd0", "call", IndirectCall, 0, 0},
		{"ff18", "lcall", IndirectCall, 0, 0},
		{"c3", "ret", Ret, 0, 0},
		{"f3c3", "ret", Ret, 0, 0},
		{"c20800", "ret", Ret, 0, 0},
		{"48cf", "iretq", Ret, 0, 0},
		{"0f05", "syscall", Syscall, 0, 0},
		{"cd80", "int", Syscall, 0, 0},
		{"cd03", "int", Syscall, 0, 0},
		{"cc", "int3", Trap, 0, 0},
		{"0f0b", "ud2", Trap, 0, 0},
		{"670fb94001", "ud1", Trap, 0, 0},
		{"f4", "hlt", Trap, 0, 0},

		// Padding.
		{"90", "nop", Nop, 0, 0},
		{"6690", "nop", Nop, 0, 0},
		{"0f1f00", "nop", Nop, 0, 0},
		{"662e0f1f8400 00000000", "nop", Nop, 0, 0},
		{"6666662e0f1f8400 00000000", "nop", Nop, 0, 0},
		{"f390", "pause", Next, 0, 0},
	}
	for _, tt := range tests {
		code := h(tt.code)
		for _, tail := range []string{"", "9090909090909090", "ffffffffffffffff", "0505050505050505"} {
			in, err := Decode(append(code[:len(code):len(code)], h(tail)...), at)
			if err != nil {
				t.Errorf("%s: %v", tt.code, err)
				continue
			}
			if in.Len != len(code) || in.Op != tt.op || in.Flow != tt.flow {
				t.Errorf("%s, %q behind: len %d, op %s, flow %v; want %d, %s, %v",
					tt.code, tail, in.Len, in.Op, in.Flow, len(code), tt.op, tt.flow)
			}
			if in.HasTarget != (tt.target != 0) || in.Target != tt.target {
				t.Errorf("%s: target %v 0x%x, want 0x%x", tt.code, in.HasTarget, in.Target, tt.target)
			}
			if in.RIPRel != (tt.rip != 0) || in.RIPTarget != tt.rip {
				t.Errorf("%s: RIP operand %v 0x%x, want 0x%x", tt.code, in.RIPRel, in.RIPTarget, tt.rip)
			}
			if in.Next() != at+uint64(len(code)) || string(in.Bytes) != string(code) || in.String() == "" {
				t.Errorf("%s: next 0x%x, bytes % x, text %q", tt.code, in.Next(), in.Bytes, in)
			}
		}
		for n := range code {
			if in, err := Decode(code[:n], at); err == nil && in.Len > n {
				t.Errorf("%s cut to %d bytes: length %d", tt.code, n, in.Len)
			}
		}
	}
}

func TestDecodeString(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]string{
		"75f0":                 "jne 0xff2",
		"4883ec08":             "sub $0x8,%rsp",
		"c5fc280510000000":     "vmovaps 0x10(%rip),%ymm0",
		"488d05f9ffffff":       "lea -0x7(%rip),%rax",
		"f30f1efa":             "endbr64",
		"62f17c48580510000000": "vaddps 0x10(%rip),%zmm0,%zmm0",
	} {
		in, err := Decode(h(code), 0x1000)
		if err != nil || in.String() != want {
			t.Errorf("%s: %q, %v; want %q", code, in, err, want)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ code, why string }{
		{"", "cut off"},
		{"66", "cut off"},
		{"e9112233", "cut off"},
		{"488d0511", "cut off"},
		{"c5fc2805112233", "cut off"},
		{"0f3accc1", "cut off"},
		{"c5", "cut off"},
		{"06", "no instruction"},
		{"d6", "no instruction"},
		{"d5001122", "no instruction"},       // REX2
		{"62f47c18ff", "no instruction"},     // APX, map 4
		{"62f978587aff", "no instruction"},   // APX bit
		{"c4e75858c0ff", "no instruction"},   // map 7
		{"c5f877 48"[:4], "cut off"},         // its own prefix only
		{"0f20c0", "no instruction"},         // mov %cr0,%rax
		{"66e91122334455", "operand-size"},   // Intel 6 bytes, AMD 4
		{"6674101122", "operand-size"},       //
		{"66e81122334455", "operand-size"},   //
		{"66c5f877", "a prefix that is not"}, //
		{"48c5f877", "a prefix that is not"}, //
		{strings.Repeat("66", 15) + "90", "cut off"},
	} {
		in, err := Decode(h(tt.code), 0x1000)
		var e *fault.Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v, want a fault", tt.code, in)
			continue
		}
		if e.Code != "unknown-instruction" || e.Kind != fault.Unfit || e.Where != "0x1000" || !strings.Contains(e.Why, tt.why) {
			t.Errorf("%s: %s %q, want %q", tt.code, e.Code, e.Why, tt.why)
		}
	}
}

func TestNopLen(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		code string
		want int
	}{
		{"", 0}, {"66", 0}, {"0f1f", 0}, {"0f1f80", 0}, {"0f1f40", 0},
		{"90c3", 1}, {"ccc3", 1}, {"6690", 2}, {"666690", 3},
		{"0f1f00", 3}, {"0f1f4000", 4}, {"0f1f440000", 5}, {"660f1f440000", 6},
		{"0f1f8000000000", 7}, {"0f1f840000000000", 8}, {"660f1f840000000000", 9},
		{"662e0f1f840000000000", 10}, {"66662e0f1f840000000000", 11},
		{"66666666662e0f1f840000000000", 14},
		{"f390", 0}, {"4890", 0}, {"4190", 0}, {"66cc", 0}, {"0000", 0}, {"c3", 0},
		{"0f1f48 00", 0}, {"0f1e00", 0}, {"eb0090", 0}, {"8d7600", 0},
		{strings.Repeat("66", 15) + "90", 0},
	} {
		if got := NopLen(h(tt.code)); got != tt.want {
			t.Errorf("NopLen(%s) = %d, want %d", tt.code, got, tt.want)
		}
	}
}
