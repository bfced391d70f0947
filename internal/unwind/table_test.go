package unwind

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"hotpatch/internal/procfs"
	"hotpatch/trampoline"
)

// builder writes tables.
type builder struct{ b []byte }

func (x *builder) u32(v uint32) { x.b = binary.LittleEndian.AppendUint32(x.b, v) }
func (x *builder) u64(v uint64) { x.b = binary.LittleEndian.AppendUint64(x.b, v) }

// record appends a record and gives its offset. wide chooses 64-bit DWARF.
func (x *builder) record(wide bool, body []byte) (at int) {
	at = len(x.b)
	if wide {
		x.u32(0xffffffff)
		x.u64(uint64(len(body)))
	} else {
		x.u32(uint32(len(body)))
	}
	x.b = append(x.b, body...)
	return at
}

// The CFA is %rsp+8, the return address at CFA-8.
var start = []byte{0x0c, 7, 8, 0x80 | 16, 1}

// ehCIE is the body of a CIE of .eh_frame with an augmentation and its data.
func ehCIE(version byte, augmentation string, data []byte, program ...byte) []byte {
	b := append([]byte{0, 0, 0, 0, version}, augmentation...)
	b = append(b, 0, 1, 0x78, 16) // code alignment 1, data alignment -8, column 16
	if augmentation != "" {
		b = append(b, byte(len(data)))
		b = append(b, data...)
	}
	return append(b, append(bytes.Clone(start), program...)...)
}

// ehFDE is the body of an FDE of .eh_frame at offset at, for 4-byte pc-relative
// pointers.
func ehFDE(at, cie int, lo, size uint32, program ...byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(at+4-cie))
	b = binary.LittleEndian.AppendUint32(b, lo-uint32(at+8))
	b = binary.LittleEndian.AppendUint32(b, size)
	return append(append(b, 0), program...)
}

func (x *builder) eh(cie int, lo, size uint32, program ...byte) {
	x.record(false, ehFDE(len(x.b), cie, lo, size, program...))
}

var anywhere = func(uint64) bool { return true }

func parse(t *testing.T, b []byte, f format) *table {
	t.Helper()
	table, err := parseTable(b, 0, f, anywhere)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// rowAt gives the row for an address, or why there is none.
func rowAt(tb *table, pc uint64) (row, string) {
	d := tb.find(pc)
	if d == nil {
		return row{}, whyNoInfo
	}
	m := machine{steps: maxSteps}
	why := m.find(tb, d, pc)
	return m.row, why
}

const pcrel4 = 0x1b

// TestAugmentations: what is not understood makes only its own functions
// unknown.
func TestAugmentations(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		cie  []byte
		ok   bool
	}{
		{"zR", ehCIE(1, "zR", []byte{pcrel4}), true},
		{"zPLR", ehCIE(1, "zPLR", []byte{0x9b, 1, 2, 3, 4, pcrel4, pcrel4}), true},
		{"zRS", ehCIE(1, "zRS", []byte{pcrel4}), true},
		{"version 3", ehCIE(3, "zR", []byte{pcrel4}), true},
		{"unknown letter", ehCIE(1, "zRX", []byte{pcrel4}), false},
		{"without z", ehCIE(1, "R", []byte{pcrel4}), false},
		{"eh", ehCIE(1, "eh", nil), false},
		{"version 2", ehCIE(2, "zR", []byte{pcrel4}), false},
		{"version 4 in .eh_frame", ehCIE(4, "zR", []byte{pcrel4}), false},
		{"aligned personality", ehCIE(1, "zPR", []byte{0x50, 1, 2, 3, 4, 5, 6, 7, 8, pcrel4}), false},
		{"data too short", ehCIE(1, "zPR", []byte{0x9b}), false},
		{"indirect address", ehCIE(1, "zR", []byte{0x9b}), false},
		{"relative to data", ehCIE(1, "zR", []byte{0x3b}), false},
		{"absolute in a library", ehCIE(1, "zR", []byte{0x00}), false},
	} {
		var x builder
		good := x.record(false, ehCIE(1, "zR", []byte{pcrel4}))
		x.eh(good, 0x1000, 0x10)
		tested := x.record(false, c.cie)
		x.eh(tested, 0x2000, 0x10)
		x.eh(good, 0x3000, 0x10)
		x.u32(0)
		tb := parse(t, x.b, format{eh: true})
		if tb.find(0x1000) == nil || tb.find(0x300f) == nil || tb.find(0x3010) != nil || tb.find(0xfff) != nil {
			t.Errorf("%s: the other records are lost", c.name)
		}
		if got := tb.find(0x2008) != nil; got != c.ok {
			t.Errorf("%s: understood %v, want %v", c.name, got, c.ok)
		}
		if d := tb.find(0x2008); d != nil && tb.cies[d.cie].signal != (c.name == "zRS") {
			t.Errorf("%s: signal frame %v", c.name, !(c.name == "zRS"))
		}
	}
}

// TestFormats: 64-bit DWARF, the version of .debug_frame with an address size,
// records in any order, and damaged chains.
func TestFormats(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	cie64 := append(le.AppendUint64(nil, ^uint64(0)), 4, 0, 8, 0, 1, 0x78, 16)
	cie64 = append(cie64, start...)
	fde64 := func(cie int, lo, size uint64) []byte {
		return le.AppendUint64(le.AppendUint64(le.AppendUint64(nil, uint64(cie)), lo), size)
	}
	var x builder
	x.record(true, fde64(36, 0x5000, 0x20)) // before its CIE, which is at 12+24
	x.record(true, cie64)
	x.record(true, fde64(36, 0x6000, 0x20))
	tb := parse(t, x.b, format{fixed: true})
	for _, pc := range []uint64{0x5000, 0x601f} {
		if r, why := rowAt(tb, pc); why != "" || r.cfaReg != regRSP || r.cfaOff != 8 || r.regs[regRA] != (rule{kind: ruleOffset, off: -8}) {
			t.Errorf("%#x: %q %+v", pc, why, r)
		}
	}

	// In .eh_frame readers disagree about such a record: it is left out.
	x = builder{}
	good := x.record(false, ehCIE(1, "zR", []byte{pcrel4}))
	x.record(true, make([]byte, 40))
	x.eh(good, 0x1000, 0x10)
	if tb := parse(t, x.b, format{eh: true}); len(tb.fdes) != 1 {
		t.Errorf("%d records", len(tb.fdes))
	}

	// An end mark in the middle is no end, unless the size is not known.
	x = builder{}
	good = x.record(false, ehCIE(1, "zR", []byte{pcrel4}))
	x.u32(0)
	x.eh(good, 0x1000, 0x10)
	if tb := parse(t, x.b, format{eh: true}); len(tb.fdes) != 1 {
		t.Errorf("%d records behind an end mark", len(tb.fdes))
	}
	if tb := parse(t, x.b, format{eh: true, open: true}); len(tb.fdes) != 0 {
		t.Errorf("%d records behind the end", len(tb.fdes))
	}
	for name, b := range map[string][]byte{
		"too long": {0x10, 0, 0, 0, 0}, "cut off": {0x10, 0, 0, 0}, "reserved length": {0xf0, 0xff, 0xff, 0xff, 0}, "no room for the id": {1, 0, 0, 0, 0},
		"64-bit length": {0xff, 0xff, 0xff, 0xff, 1, 2, 3},
	} {
		if tb, err := parseTable(b, 0, format{eh: true}, anywhere); err == nil || tb != nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestClash: two records that say different things of the same code are not
// believed; two that say the same are one.
func TestClash(t *testing.T) {
	t.Parallel()
	var x builder
	cie := x.record(false, ehCIE(1, "zR", []byte{pcrel4}))
	x.eh(cie, 0x1000, 0x10)
	x.eh(cie, 0x1000, 0x10)
	x.eh(cie, 0x2000, 0x100, 0x0e, 16)
	x.eh(cie, 0x2010, 0x10)
	x.eh(cie, 0x2050, 0x10)
	x.eh(cie, 0x3000, 0x10)
	x.eh(cie, 0, 0)          // empty
	x.eh(cie, 0xfffffff0, 1) // far away: keep refuses it
	tb, err := parseTable(x.b, 0, format{eh: true}, func(a uint64) bool { return a < 0x10000 })
	if err != nil || len(tb.fdes) != 5 {
		t.Fatalf("%v, %d records", err, len(tb.fdes))
	}
	for pc, want := range map[uint64]string{0x1008: "", 0x2008: whyClash, 0x2018: whyClash, 0x2058: whyClash, 0x3008: "", 0x2080: whyNoInfo} {
		if _, why := rowAt(tb, pc); why != want {
			t.Errorf("%#x: %q, want %q", pc, why, want)
		}
	}
}

// TestInstructions executes each call frame instruction.
func TestInstructions(t *testing.T) {
	t.Parallel()
	get := func(program ...byte) (row, string) {
		var x builder
		cie := x.record(false, ehCIE(1, "zR", []byte{pcrel4}, 0x08, 3)) // rbx: same value
		x.eh(cie, 0x1000, 0x100000, program...)
		return rowAt(parse(t, x.b, format{eh: true}), 0x1000+0x200)
	}
	for _, c := range []struct {
		name    string
		program []byte
		reg     int
		want    rule
	}{
		{"offset", []byte{0x80 | 6, 2}, regRBP, rule{kind: ruleOffset, off: -16}},
		{"offset_extended", []byte{0x05, 6, 2}, regRBP, rule{kind: ruleOffset, off: -16}},
		{"offset_extended_sf", []byte{0x11, 6, 0x7e}, regRBP, rule{kind: ruleOffset, off: 16}},
		{"GNU_negative_offset_extended", []byte{0x2f, 6, 2}, regRBP, rule{kind: ruleOffset, off: 16}},
		{"val_offset", []byte{0x14, 6, 2}, regRBP, rule{kind: ruleValOffset, off: -16}},
		{"val_offset_sf", []byte{0x15, 6, 0x7e}, regRBP, rule{kind: ruleValOffset, off: 16}},
		{"register", []byte{0x09, 6, 1}, regRBP, rule{kind: ruleRegister, off: 1}},
		{"register of another sort", []byte{0x09, 6, 33}, regRBP, rule{kind: ruleRegister, off: numRegs}},
		{"undefined", []byte{0x07, 6}, regRBP, rule{kind: ruleUndefined}},
		{"same_value", []byte{0x08, 6}, regRBP, rule{kind: ruleSame}},
		{"restore", []byte{0x80 | 3, 2, 0xc0 | 3}, regRBX, rule{kind: ruleSame}},
		{"restore_extended", []byte{0x80 | 3, 2, 0x06, 3}, regRBX, rule{kind: ruleSame}},
		{"remember and restore", []byte{0x0a, 0x80 | 6, 2, 0x0b}, regRBP, rule{}},
		{"advance_loc", []byte{0x40 | 63, 0x80 | 6, 2}, regRBP, rule{kind: ruleOffset, off: -16}},
		{"advance_loc1 too far", []byte{0x02, 0xff, 0x02, 0xff, 0x02, 0xff, 0x80 | 6, 2}, regRBP, rule{}},
		{"advance_loc2", []byte{0x03, 0, 2, 0x80 | 6, 2}, regRBP, rule{kind: ruleOffset, off: -16}},
		{"advance_loc2 too far", []byte{0x03, 1, 2, 0x80 | 6, 2}, regRBP, rule{}},
		{"advance_loc4", []byte{0x04, 0, 2, 0, 0, 0x80 | 6, 2}, regRBP, rule{kind: ruleOffset, off: -16}},
		{"a vector register", []byte{0x05, 33, 2, 0x80 | 6, 2}, regRBP, rule{kind: ruleOffset, off: -16}},
		{"GNU_args_size", []byte{0x2e, 16, 0x80 | 6, 2}, regRBP, rule{kind: ruleOffset, off: -16}},
	} {
		r, why := get(c.program...)
		if why != "" || r.regs[c.reg] != c.want {
			t.Errorf("%s: %q %+v, want %+v", c.name, why, r.regs[c.reg], c.want)
		}
	}
	for _, c := range []struct {
		name    string
		program []byte
		reg     uint64
		off     int64
	}{
		{"def_cfa", []byte{0x0c, 6, 16}, regRBP, 16},
		{"def_cfa_register", []byte{0x0d, 6}, regRBP, 8},
		{"def_cfa_offset", []byte{0x0e, 24}, regRSP, 24},
		{"def_cfa_sf", []byte{0x12, 6, 0x7e}, regRBP, 16},
		{"def_cfa_offset_sf", []byte{0x13, 0x7d}, regRSP, 24},
		{"restore_state restores it", []byte{0x0a, 0x0c, 6, 16, 0x0b}, regRSP, 8},
	} {
		if r, why := get(c.program...); why != "" || r.cfa != cfaRegister || r.cfaReg != c.reg || r.cfaOff != c.off {
			t.Errorf("%s: %q %+v", c.name, why, r)
		}
	}
	for _, c := range []struct {
		name    string
		program []byte
		why     string
	}{
		{"restore_state without remember_state", []byte{0x0b}, whyDamaged},
		{"too deep", bytes.Repeat([]byte{0x0a}, maxRemembered+1), whyRemember},
		{"unknown", []byte{0x3f}, whyUnknown},
		{"AArch64's", []byte{0x2d}, whyUnknown},
		{"cut off", []byte{0x05, 6}, whyDamaged},
		{"a number without end", append([]byte{0x0e}, bytes.Repeat([]byte{0x80}, 12)...), whyDamaged},
		{"an offset for an expression", []byte{0x0f, 1, 0x30, 0x0e, 8}, whyDamaged},
		{"an expression beyond the end", []byte{0x0f, 9, 0x30}, whyDamaged},
		{"set_loc backwards", []byte{0x01, 0, 0, 0, 0}, whyDamaged},
	} {
		if _, why := get(c.program...); why != c.why {
			t.Errorf("%s: %q, want %q", c.name, why, c.why)
		}
	}
	if _, why := rowAt(func() *table {
		var x builder
		cie := x.record(false, ehCIE(1, "zR", []byte{pcrel4}, 0x41))
		x.eh(cie, 0x1000, 0x10)
		return parse(t, x.b, format{eh: true})
	}(), 0x1000); why != whyDamaged {
		t.Errorf("a CIE that advances: %q", why)
	}
}

// fakeMemory is memory that is nowhere but in a map of pages.
type fakeMemory map[uint64][]byte

func (f fakeMemory) ReadAt(b []byte, addr uint64) error {
	for i := range b {
		page, ok := f[(addr+uint64(i))&^(pageSize-1)]
		if !ok {
			return errors.New("not mapped")
		}
		b[i] = page[(addr+uint64(i))%pageSize]
	}
	return nil
}

var _ procfs.Memory = fakeMemory{}

// TestExpressions computes DWARF expressions.
func TestExpressions(t *testing.T) {
	t.Parallel()
	page := make([]byte, pageSize)
	copy(page[0x10:], []byte{1, 2, 3, 4, 5, 6, 7, 0x88})
	mem := pages{mem: fakeMemory{0x7000: page}}
	s := newState(Regs{RSP: 0x7000, RIP: 0x40100b, RBX: 5})
	s.known &^= 1 << regR11
	var e evaluator
	minus := func(n int64) uint64 { return uint64(-n) }
	for _, c := range []struct {
		name string
		code []byte
		want uint64
		why  string
	}{
		// That of a lazy PLT: 8 more behind the push, which is 11 bytes into the entry.
		{"plt", []byte{0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22}, 0x7010, ""},
		{"deref", []byte{0x77, 0x10, 0x06}, 0x8807060504030201, ""},
		{"deref_size 2", []byte{0x77, 0x10, 0x94, 2}, 0x0201, ""},
		{"const1s", []byte{0x09, 0xff}, minus(1), ""},
		{"const2u", []byte{0x0a, 0xff, 0xff}, 0xffff, ""},
		{"const4s", []byte{0x0d, 0xfe, 0xff, 0xff, 0xff}, minus(2), ""},
		{"const8u", []byte{0x0e, 8, 7, 6, 5, 4, 3, 2, 1}, 0x0102030405060708, ""},
		{"constu", []byte{0x10, 0x80, 1}, 128, ""},
		{"consts", []byte{0x11, 0x7f}, minus(1), ""},
		{"bregx", []byte{0x92, 3, 2}, 7, ""},
		{"dup mul", []byte{0x37, 0x12, 0x1e}, 49, ""},
		{"over minus", []byte{0x39, 0x32, 0x14, 0x1c}, minus(7), ""},
		{"swap minus", []byte{0x39, 0x32, 0x16, 0x1c}, minus(7), ""},
		{"pick", []byte{0x39, 0x32, 0x31, 0x15, 2}, 9, ""},
		{"rot", []byte{0x31, 0x32, 0x33, 0x17, 0x13}, 1, ""}, // 1 2 3 becomes 3 1 2
		{"div", []byte{0x09, 0xf6, 0x33, 0x1b}, minus(3), ""},
		{"mod", []byte{0x3a, 0x33, 0x1d}, 1, ""},
		{"not and or xor", []byte{0x30, 0x20, 0x3c, 0x1a, 0x31, 0x21, 0x34, 0x27}, 9, ""},
		{"abs neg", []byte{0x09, 0xf6, 0x19, 0x1f}, minus(10), ""},
		{"shr shra", []byte{0x09, 0xf0, 0x32, 0x26}, minus(4), ""},
		{"shift by much", []byte{0x31, 0x08, 200, 0x24}, 0, ""},
		{"plus_uconst", []byte{0x31, 0x23, 0x80, 1}, 129, ""},
		{"compare", []byte{0x09, 0xff, 0x31, 0x2d}, 1, ""},
		{"bra", []byte{0x35, 0x31, 0x28, 1, 0, 0x36}, 5, ""},
		{"skip", []byte{0x35, 0x2f, 1, 0, 0x36}, 5, ""},
		{"endless", []byte{0x2f, 0xfd, 0xff}, 0, whyExpr},
		{"jump out", []byte{0x2f, 9, 0}, 0, whyExpr},
		{"empty", nil, 0, whyExpr},
		{"underflow", []byte{0x31, 0x22}, 0, whyExpr},
		{"overflow", bytes.Repeat([]byte{0x31}, maxExprStack+1), 0, whyExpr},
		{"by zero", []byte{0x31, 0x30, 0x1b}, 0, whyExpr},
		{"least by minus one", []byte{0x0e, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x09, 0xff, 0x1b}, 1 << 63, ""},
		{"unknown", []byte{0x31, 0x31, 0xe0}, 0, whyExpr},
		{"addr", []byte{0x03, 1, 2, 3, 4, 5, 6, 7, 8}, 0, whyExpr},
		{"cut off", []byte{0x0e, 1}, 0, whyExpr},
		{"unknown register", []byte{0x7b, 0}, 0, whyExprReg},
		{"vector register", []byte{0x92, 40, 0}, 0, whyExprReg},
		{"no memory", []byte{0x30, 0x06}, 0, whyExprMemory},
	} {
		if got, why := e.eval(c.code, &s, &mem, 0, false); got != c.want && c.why == "" || why != c.why {
			t.Errorf("%s: %#x %q, want %#x %q", c.name, got, why, c.want, c.why)
		}
	}
	if got, why := e.eval([]byte{0x38, 0x1c}, &s, &mem, 0x100, true); got != 0xf8 || why != "" {
		t.Errorf("with the CFA: %#x %q", got, why)
	}
}

// TestCallEnds compares the recognition of call instructions with the decoder,
// over all forms of them and over random bytes.
func TestCallEnds(t *testing.T) {
	t.Parallel()
	calls := 0
	r := rand.New(rand.NewPCG(1, 2))
	for range 200000 {
		b := make([]byte, 16)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		at := r.IntN(8)
		switch r.IntN(3) {
		case 0:
			b[at] = 0xe8
		case 1:
			b[at], b[at+1] = 0xff, b[at+1]&^0x38|0x10
		}
		in, err := trampoline.Decode(b[at:], 0)
		if err != nil || in.Flow != trampoline.Call && in.Flow != trampoline.IndirectCall || in.Op == "lcall" {
			continue
		}
		calls++
		if !isCallEnd(b[:at+in.Len]) {
			t.Fatalf("% x is a call", in.Bytes)
		}
	}
	if calls < 50000 {
		t.Errorf("only %d calls", calls)
	}
	for _, s := range []string{"", "e8", "90 90 90 90 90 90 90", "ff d8 90", "00 00 00 00 00 ff e0", "ff 15 00 00 00 00 00", "00 00 00 00 00 00 c3"} {
		var b []byte
		for _, f := range strings.Fields(s) {
			var v byte
			for _, c := range f {
				v = v<<4 | byte(strings.IndexRune("0123456789abcdef", c))
			}
			b = append(b, v)
		}
		if isCallEnd(b) {
			t.Errorf("%s ends with no call", s)
		}
	}
}
