package runpre

import (
	"bytes"
	"hash/maphash"

	"hotpatch/internal/objfile"
	"hotpatch/trampoline"
)

// prefix identifies the first n instructions of a function, without what
// linkers fill in.
type prefix struct {
	n    int
	hash uint64
}

// lengths are the lengths of the prefixes, ascending.
var lengths = [...]int{1, 2, 4, 8, 16}

var seed = maphash.MakeSeed()

// isPadding reports whether an instruction does nothing: the compiler's and the
// linker's padding. int3 is none.
func isPadding(b []byte) bool { return b[0] != 0xcc && trampoline.NopLen(b) == len(b) }

// token writes what of an instruction is the same in an object and in an image:
// all of it, or only its name where a linker may have filled in 4 bytes.
func token(h *maphash.Hash, in *trampoline.Inst) {
	if in.HasTarget || in.RIPRel || in.Len >= 5 {
		op := in.Op
		if op == "lea" || op == "movabs" {
			op = "mov" // as linkers relax it
		}
		if in.Flow == trampoline.CondJump {
			op += "?"
		}
		h.WriteString(op)
		h.WriteByte(0)
		return
	}
	h.Write(in.Bytes)
	h.WriteByte(1)
}

// makeIndex indexes the image's code at all starts.
func (im *Image) makeIndex() {
	im.index = make(map[prefix][]uint64)
	var h maphash.Hash
	h.SetSeed(seed)
	for _, start := range im.starts {
		h.Reset()
		n, k, at := 0, 0, start
		code := im.at(start)
		for k < len(lengths) {
			in, err := trampoline.Decode(code[at-start:], at)
			if err != nil {
				break
			}
			at = in.Next()
			if isPadding(in.Bytes) {
				continue
			}
			token(&h, &in)
			if n++; n == lengths[k] {
				p := prefix{n, h.Sum64()}
				im.index[p] = append(im.index[p], start)
				k++
			}
		}
	}
}

// likely gives the starts whose code begins as a function of the object does.
func (im *Image) likely(f *function) []uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	best := prefix{}
	k := 0
	for i := range f.insts {
		in := &f.insts[i]
		if k == len(lengths) || hasThreadLocal(in) {
			break
		}
		token(&h, &in.Inst)
		if i+1 == lengths[k] {
			best = prefix{i + 1, h.Sum64()}
			k++
		}
	}
	if best.n == 0 {
		return im.starts // it begins with code that linkers rewrite
	}
	return im.index[best]
}

// anchored gives addresses where the longest run of bytes of a function without
// relocations occurs in the image's code, for functions that no table knows.
func (im *Image) anchored(f *function) (list []uint64) {
	var lo, hi, from uint64
	from = f.lo
	for _, r := range append(f.sec.Within(f.lo, f.hi), objfile.Reloc{Off: f.hi}) {
		if r.Off > from && r.Off-from > hi-lo {
			lo, hi = from, r.Off
		}
		from = r.Off + uint64(r.Width())
	}
	const shortest, most = 12, 64
	if hi-lo < shortest {
		return nil
	}
	pattern := f.sec.Data[lo:hi]
	for i := range im.segs {
		s := &im.segs[i]
		if s.flags&1 == 0 { // PF_X
			continue
		}
		for at := 0; len(list) < most; at++ {
			n := bytes.Index(s.data[at:], pattern)
			if n < 0 {
				break
			}
			at += n
			if back := lo - f.lo; uint64(at) >= back {
				list = append(list, s.lo+uint64(at)-back)
			}
		}
	}
	return list
}
