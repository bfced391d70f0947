package trampoline

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hotpatch/internal/fault"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	for _, tt := range prologues {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := tt.f
			if f.Addr == 0 {
				f.Addr = f0
			}
			p, err := Judge(f, tt.far)
			if tt.fault != "" {
				var e *fault.Error
				if !errors.As(err, &e) {
					t.Fatalf("%+v, want the fault %s", p, tt.fault)
				}
				if e.Code != tt.fault || e.Kind != fault.Unfit || !strings.Contains(e.Error(), tt.reason) {
					t.Errorf("%s: %v; want %s: %s", e.Code, e, tt.fault, tt.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			last := p.Writes[len(p.Writes)-1]
			want := tt.want
			want.Overwritten = Range{want.Site, want.Site + uint64(last.Len)}
			if d := cmp.Diff(want, p); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			checkEncode(t, p)
		})
	}
}

// checkEncode follows the jumps that p.Encode makes.
func checkEncode(t *testing.T, p Patch) {
	t.Helper()
	dest := p.Site + 0x12340000
	if p.Writes[0].Len == FarSize {
		dest = 0x7f12_3456_7890
	}
	all, err := p.Encode(dest)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(p.Writes) {
		t.Fatalf("%d encodings for %d writes", len(all), len(p.Writes))
	}
	at := p.Site
	for i := len(all) - 1; i >= 0; i-- {
		if w := p.Writes[i]; w.Addr != at || w.Len != len(all[i]) {
			t.Errorf("write %d of %d bytes at 0x%x, want %d at 0x%x", i, w.Len, w.Addr, len(all[i]), at)
		}
		next, ok := ParseJump(all[i], at)
		if !ok {
			t.Fatalf("% x is no jump", all[i])
		}
		at = next
	}
	if at != dest {
		t.Errorf("it ends at 0x%x, want 0x%x", at, dest)
	}
}

func TestJudgeAlignment(t *testing.T) {
	t.Parallel()
	for i := range uint64(8) {
		f := Function{Addr: f0 + i, Code: h("55 4889e5 31c0 5d c3")}
		p, err := Judge(f, false)
		if err != nil {
			t.Fatal(err)
		}
		if p.Form != Near || p.Site != f.Addr || p.Straddles || len(p.Writes) != 1 {
			t.Errorf("at +%d: %+v", i, p)
		}
		checkEncode(t, p)
	}
}

func TestShortFunctionDetails(t *testing.T) {
	t.Parallel()
	_, err := Judge(Function{Addr: f0, Code: h("31c0 c3"), After: nops(1)}, false)
	var e *fault.Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	if want := (Room{Have: 4, Need: 5}); e.Details != want {
		t.Errorf("details %+v, want %+v", e.Details, want)
	}
	for _, s := range []string{"--method vtable", "-falign-functions=16"} {
		if !strings.Contains(e.Hint, s) {
			t.Errorf("hint %q is without %s", e.Hint, s)
		}
	}
}

// TestOverlaps: two short functions on both sides of the same padding.
func TestOverlaps(t *testing.T) {
	t.Parallel()
	gap := nops(14)
	a := Function{Addr: f0, Code: h("31c0 c3"), After: gap}
	b := Function{Addr: f0 + 17, Code: h("31c0 c3"), Before: gap}
	for _, tt := range []struct{ far, want bool }{{false, false}, {true, true}} {
		p, errA := Judge(a, tt.far)
		q, errB := Judge(b, tt.far)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if p.Overlaps(q) != tt.want || q.Overlaps(p) != tt.want {
			t.Errorf("far %v: %v and %v overlap: %v, want %v", tt.far, p.Writes, q.Writes, p.Overlaps(q), tt.want)
		}
		if !p.Overlaps(p) {
			t.Errorf("%v does not overlap itself", p.Writes)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	near := Patch{Form: Near, Site: f0, Writes: []Write{{f0, 5}}}
	if _, err := near.Encode(f0 + 1<<40); fault.CodeOf(err) != "out-of-reach" {
		t.Errorf("near: %v", err)
	}
	pad := Patch{Form: Pad, Site: f0, Writes: []Write{{f0 - 5, 5}, {f0, 2}}}
	if _, err := pad.Encode(f0 + 1<<40); fault.CodeOf(err) != "out-of-reach" {
		t.Errorf("pad: %v", err)
	}
	pad.Writes[0].Addr = f0 - 1000
	if _, err := pad.Encode(f0); fault.CodeOf(err) != "out-of-reach" {
		t.Errorf("pad too far away: %v", err)
	}
	for _, p := range []Patch{
		{},
		{Form: Near, Site: f0},
		{Form: Near, Site: f0, Writes: []Write{{f0, 14}}},
		{Form: Near, Site: f0, Writes: []Write{{f0 + 1, 5}}},
		{Form: Far, Site: f0, Writes: []Write{{f0, 5}}},
		{Form: Pad, Site: f0, Writes: []Write{{f0, 2}}},
		{Form: Pad, Site: f0, Writes: []Write{{f0 - 5, 4}, {f0, 2}}},
		{Form: Pad, Site: f0, Writes: []Write{{f0 - 5, 5}, {f0 + 1, 2}}},
		{Form: 9, Site: f0, Writes: []Write{{f0, 5}}},
	} {
		if b, err := p.Encode(f0); fault.CodeOf(err) != "malformed-patch" {
			t.Errorf("%+v: % x, %v", p, b, err)
		}
	}
}

// TestJudgeIsLinear: a function of which every instruction branches into the
// middle of another is decoded once a byte, not once a branch.
func TestJudgeIsLinear(t *testing.T) {
	t.Parallel()
	code := append(h("9090909090"), []byte(strings.Repeat("\xeb\xff\xc0\x90", 50_000))...) // jmp into its own second byte
	code = append(code, 0xc3)
	s, err := sweepFunction(Function{Addr: f0, Code: code})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, b := range s.regions[0].seen {
		if b {
			seen++
		}
	}
	if seen == 0 || s.decoded > len(code) || s.decoded != seen {
		t.Errorf("%d instructions decoded at %d places of %d bytes", s.decoded, seen, len(code))
	}
}

func ExamplePatch_Encode() {
	// push %rbp; mov %rsp,%rbp; xor %eax,%eax; pop %rbp; ret
	f := Function{Addr: 0x401000, Code: []byte{0x55, 0x48, 0x89, 0xe5, 0x31, 0xc0, 0x5d, 0xc3}}
	p, err := Judge(f, false)
	if err != nil {
		fmt.Println(err)
		return
	}
	b, err := p.Encode(0x500000)
	fmt.Printf("%v at 0x%x: % x, %v\n", p.Form, p.Writes[0].Addr, b[0], err)
	// Output: near at 0x401000: e9 fb ef 0f 00, <nil>
}
