package trampoline

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"

	"hotpatch/internal/fault"
)

// checkFault: a refusal is a fault with everything that a reader needs.
func checkFault(t *testing.T, err error) {
	t.Helper()
	var e *fault.Error
	if !errors.As(err, &e) || e.Kind != fault.Unfit || e.Code == "" || e.What == "" || e.Where == "" || e.Why == "" {
		t.Fatalf("not a whole fault: %#v", err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"90", "f30f1efa", "c5f877", "c5fc280510000000", "62f17c48580510000000", "8fe97880c1",
		"660f38f6c1", "e9fbffffff", "66e900112233", "c7f810000000", "f3480f1ec8", "67488b0510000000", "9bd93c24", "c4e3f9690510000000 20"} {
		f.Add(h(s), uint64(0x401000))
	}
	f.Fuzz(func(t *testing.T, code []byte, addr uint64) {
		in, err := Decode(code, addr)
		if err != nil {
			checkFault(t, err)
			if !reflect.DeepEqual(in, Inst{}) {
				t.Fatalf("an instruction and an error: %v, %v", in, err)
			}
			return
		}
		if in.Len < 1 || in.Len > min(maxInst, len(code)) || !bytes.Equal(in.Bytes, code[:in.Len]) || in.Addr != addr {
			t.Fatalf("% x: length %d, bytes % x", code, in.Len, in.Bytes)
		}
		if in.Op == "" || in.String() == "" {
			t.Fatalf("% x: no name", in.Bytes)
		}
		switch in.Flow {
		case Jump, CondJump, Call:
			if !in.HasTarget {
				t.Fatalf("%v: flow %v without a target", in, in.Flow)
			}
		default:
			if in.HasTarget {
				t.Fatalf("%v: flow %v with a target", in, in.Flow)
			}
		}
		// What stands behind an instruction is none of its business.
		for _, tail := range [][]byte{nil, bytes.Repeat([]byte{0xff}, 14), make([]byte, 14)} {
			again, err := Decode(append(slices.Clone(in.Bytes), tail...), addr)
			if err != nil || again.Len != in.Len || again.Flow != in.Flow ||
				again.Target != in.Target || again.RIPTarget != in.RIPTarget {
				t.Fatalf("% x: %+v, and with % x behind %+v, %v", in.Bytes, in, tail, again, err)
			}
		}
		if n := NopLen(code); n != 0 && n != in.Len {
			t.Fatalf("% x: NopLen %d, length %d", code, n, in.Len)
		}
	})
}

func FuzzJudge(f *testing.F) {
	for _, p := range prologues {
		var part []byte
		if len(p.f.Parts) > 0 {
			part = p.f.Parts[0].Code
		}
		f.Add(max(p.f.Addr, f0), p.f.Code, p.f.After, p.f.Before, uint64(0x400800), part, p.far)
	}
	f.Fuzz(func(t *testing.T, addr uint64, code, after, before []byte, partAddr uint64, part []byte, far bool) {
		fn := Function{Addr: addr, Code: code, After: after, Before: before, Parts: []Part{{partAddr, part}}}
		p, err := Judge(fn, far)
		if err != nil {
			checkFault(t, err)
			if !reflect.DeepEqual(p, Patch{}) {
				t.Fatalf("a patch and an error: %+v, %v", p, err)
			}
			return
		}
		lo, end := addr-uint64(len(before)), addr+uint64(len(code))
		hi := end + uint64(len(after))
		for _, w := range p.Writes {
			if w.Addr < lo || w.Addr+uint64(w.Len) > hi {
				t.Fatalf("write %+v outside [%#x, %#x)", w, lo, hi)
			}
		}
		last := p.Writes[len(p.Writes)-1]
		if last.Range() != p.Overwritten || p.Overwritten.Start != p.Site {
			t.Fatalf("site %#x, last write %v, overwritten %v", p.Site, last.Range(), p.Overwritten)
		}
		if p.Site != addr && (p.Site != addr+4 || !bytes.HasPrefix(code, endbr64)) {
			t.Fatalf("site %#x of the function %#x", p.Site, addr)
		}
		if (p.Form == Far) && !far || (p.Form == Near) && far {
			t.Fatalf("form %v with far %v", p.Form, far)
		}
		// The boundaries are those of a walk from the site, and the returns are
		// some of them.
		var walk []uint64
		for a := p.Site; a < p.Overwritten.End; {
			if p.Overwritten.Interior(a) {
				walk = append(walk, a)
			}
			rest := code
			if a >= end {
				rest = after[a-end:]
			} else {
				rest = code[a-addr:]
			}
			in, err := Decode(rest, a)
			if err != nil {
				t.Fatalf("overwrites what it cannot decode: %v", err)
			}
			a = in.Next()
			if a > end && in.Addr < end {
				t.Fatalf("%v goes over the end of the function", in)
			}
		}
		if !slices.Equal(walk, p.Boundaries) {
			t.Fatalf("boundaries %#x, want %#x", p.Boundaries, walk)
		}
		for _, r := range p.Returns {
			if !slices.Contains(walk, r) {
				t.Fatalf("return to %#x, which is no boundary of %#x", r, walk)
			}
		}
		// No branch of a straight walk goes inside.
		for _, c := range append(fn.Parts, Part{addr, code}) {
			for off := 0; off < len(c.Code); {
				in, err := Decode(c.Code[off:], c.Addr+uint64(off))
				if err != nil {
					t.Fatalf("accepted what it cannot decode: %v", err)
				}
				if in.HasTarget && p.Overwritten.Interior(in.Target) || in.RIPRel && p.Overwritten.Interior(in.RIPTarget) {
					t.Fatalf("%v at %#x refers to the inside of %v", in, in.Addr, p.Overwritten)
				}
				off += in.Len
			}
		}
		checkEncode(t, p)
	})
}
