package trampoline

import (
	"encoding/hex"
	"os/exec"
	"strings"
	"testing"
)

// TestCanReturnBehind: everything that can be returned to is known by its end, and the
// usual ends of functions are known not to be.
func TestCanReturnBehind(t *testing.T) {
	t.Parallel()
	behind := func(end string) bool {
		b, err := hex.DecodeString("90909090909090" + strings.ReplaceAll(end, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return CanReturnBehind(b)
	}
	for text, end := range map[string]string{
		"call rel32": "e8 11 22 33 44", "call rax": "ff d0", "call r9": "41 ff d1", "call [rax]": "ff 10",
		"call [rsp]": "ff 14 24", "call [rax+8]": "ff 50 08", "call [rsp+8]": "ff 54 24 08", "call [rip+x]": "ff 15 11 22 33 44",
		"call [rsp+x]": "ff 94 24 11 22 33 44", "call [r12+x]": "41 ff 94 24 11 22 33 44", "lcall [rax]": "ff 18",
		"call fs:[rax]": "64 ff 10", "bnd call rax": "f2 ff d0", "notrack call rax": "3e ff d0",
		"syscall": "0f 05", "sysenter": "0f 34", "int 0x80": "cd 80", "int3": "cc", "int1": "f1",
	} {
		if !behind(end) {
			t.Errorf("%s can be returned to", text)
		}
	}
	for text, end := range map[string]string{
		"ret": "c3", "ret behind add": "48 83 c4 18 c3", "jmp rel32": "e9 11 22 33 44", "jmp rel8": "eb f0", "jmp rax": "ff e0",
		"ud2": "0f 0b", "nop": "66 0f 1f 44 00 00", "lea and ret": "48 8d 04 7f c3",
	} {
		if behind(end) {
			t.Errorf("nothing returns behind %s", text)
		}
	}
	if !CanReturnBehind([]byte{0xc3}) || !CanReturnBehind(nil) {
		t.Error("of too little code nothing can be said")
	}
}

// TestReturnsInRealCode: all of libc's and a C++ library's calls and system calls are such
// places, and few of the ends of their functions are.
func TestReturnsInRealCode(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"libc.so.6", "libstdc++.so.6"} {
		out, err := exec.Command("g++", "-print-file-name="+name).Output()
		if err != nil {
			t.Fatal(err)
		}
		calls, all, ends := 0, 0, 0
		for _, f := range functions(t, strings.TrimSpace(string(out))) {
			for at := 0; at < len(f.Code); {
				in, err := Decode(f.Code[at:], f.Addr+uint64(at))
				if err != nil {
					break // data
				}
				at += in.Len
				switch in.Flow {
				case Call, IndirectCall, Syscall:
					if calls++; at >= longestCall && !CanReturnBehind(f.Code[at-longestCall:at]) {
						t.Errorf("%s: %v at %#x is not known", name, in, in.Addr)
					}
				}
			}
			if all++; len(f.Code) >= longestCall && CanReturnBehind(f.Code) {
				ends++
			}
		}
		if calls < 1000 || ends*3 > all {
			t.Errorf("%s: %d calls; %d of %d functions can end in one", name, calls, ends, all)
		}
		t.Logf("%s: %d calls; %d of %d functions can end in one", name, calls, ends, all)
	}
}
