package trampoline

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/fault"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestEncodings compares every jump with the bytes wanted, and with what objdump
// makes of them.
func TestEncodings(t *testing.T) {
	t.Parallel()
	const at = 0x401000
	near := func(to uint64) []byte { b := must(JumpNear(at, to)); return b[:] }
	short := func(to uint64) []byte { b := must(JumpShort(at, to)); return b[:] }
	far := func(to uint64) []byte { b := JumpFar(to); return b[:] }
	for _, tt := range []struct {
		name string
		code []byte
		hex  string
		text string // objdump's first line
		dest uint64
	}{
		{"near forward", near(0x401234), "e92f020000", "jmp 0x401234", 0x401234},
		{"near back", near(0x400000), "e9fbefffff", "jmp 0x400000", 0x400000},
		{"near to itself", near(at), "e9fbffffff", "jmp 0x401000", at},
		{"near, farthest forward", near(at + 5 + 1<<31 - 1), "e9ffffff7f", "jmp 0x80401004", at + 5 + 1<<31 - 1},
		{"short into a pad of 14", short(at - 14), "ebf0", "jmp 0x400ff2", at - 14},
		{"short, behind endbr64", short(at - 18), "ebec", "jmp 0x400fee", at - 18},
		{"short, farthest forward", short(at + 129), "eb7f", "jmp 0x401081", at + 129},
		{"short, farthest back", short(at - 126), "eb80", "jmp 0x400f82", at - 126},
		{"far", far(0x7f1122334455), "ff2500000000 5544332211 7f0000", "jmp *0x0(%rip) # 0x401006", 0x7f1122334455},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if want := h(tt.hex); string(tt.code) != string(want) {
				t.Errorf("% x, want % x", tt.code, want)
			}
			if dest, ok := ParseJump(tt.code, at); !ok || dest != tt.dest {
				t.Errorf("ParseJump: 0x%x, %v; want 0x%x", dest, ok, tt.dest)
			}
			for n := range tt.code {
				if dest, ok := ParseJump(tt.code[:n], at); ok {
					t.Errorf("cut to %d bytes it is a jump to 0x%x", n, dest)
				}
			}
			if got := objdumpFirst(t, tt.code, at); got != tt.text {
				t.Errorf("objdump %q, want %q", got, tt.text)
			}
		})
	}
}

// objdumpFirst gives objdump's text of the first instruction in code.
func objdumpFirst(t *testing.T, code []byte, at uint64) string {
	t.Helper()
	objdump := oracle(t)
	path := filepath.Join(t.TempDir(), "code")
	if err := os.WriteFile(path, code, 0o644); err != nil {
		t.Fatal(err)
	}
	var text string
	disassemble(t, objdump, []string{"-D", "-b", "binary", "-m", "i386:x86-64", fmt.Sprintf("--adjust-vma=%#x", at), path},
		func(d dumped) {
			if d.addr == at {
				text = strings.Join(strings.Fields(d.text), " ")
			}
		})
	return text
}

func TestJumpOutOfReach(t *testing.T) {
	t.Parallel()
	const at = 1 << 40
	for _, to := range []uint64{at + 5 + 1<<31, at + 4 - 1<<31, 0, 1 << 46} {
		if b, err := JumpNear(at, to); fault.CodeOf(err) != "out-of-reach" {
			t.Errorf("JumpNear to 0x%x: % x, %v", to, b, err)
		}
	}
	for _, to := range []uint64{at + 130, at - 127, 0} {
		if b, err := JumpShort(at, to); fault.CodeOf(err) != "out-of-reach" {
			t.Errorf("JumpShort to 0x%x: % x, %v", to, b, err)
		}
	}
	if b := must(JumpNear(at, at+5-1<<31)); b != [5]byte{0xe9, 0, 0, 0, 0x80} {
		t.Errorf("farthest back: % x", b)
	}
}

func TestParseJumpOther(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"", "c3", "90e911223344", "ff2501000000 0000000000000000", "ffe0", "e811223344", "0f8511223344"} {
		if dest, ok := ParseJump(h(code), 0x1000); ok {
			t.Errorf("%s: a jump to 0x%x", code, dest)
		}
	}
}

func TestIsland(t *testing.T) {
	t.Parallel()
	const at = 0x7f0000000000
	code := IslandCode()
	if len(code) != IslandCodeSize || IslandSlots*SlotSize != IslandCodeSize || IslandSlots*8 != IslandDataSize {
		t.Fatalf("%d bytes of code, %d slots", len(code), IslandSlots)
	}
	for i := range IslandSlots {
		slot := code[i*SlotSize:][:SlotSize]
		in, err := Decode(slot, at+uint64(i*SlotSize))
		if err != nil {
			t.Fatal(err)
		}
		if want := uint64(at + IslandCodeSize + 8*i); in.Flow != IndirectJump || !in.RIPRel || in.RIPTarget != want {
			t.Fatalf("slot %d: %v %v through 0x%x, want 0x%x", i, in, in.Flow, in.RIPTarget, want)
		}
		if string(slot[in.Len:]) != "\xcc\xcc" {
			t.Fatalf("slot %d ends with % x", i, slot[in.Len:])
		}
	}
	if got, want := objdumpFirst(t, code[:SlotSize], at), "jmp *0xffa(%rip) # 0x7f0000001000"; got != want {
		t.Errorf("objdump %q, want %q", got, want)
	}
}
