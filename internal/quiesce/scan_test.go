package quiesce

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// TestSkip: with and without vectors, nothing of interest is skipped, and whatever
// stops the search is of interest or less than a block before it.
func TestSkip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	find := func(b []byte, low, reach uint64) int {
		for at := 0; at < len(b); at += 8 {
			if v := binary.LittleEndian.Uint64(b[at:]); v-low < reach || v&selectors == userCode {
				return at
			}
		}
		return len(b)
	}
	defer func(has bool) { hasAVX2 = has }(hasAVX2)
	for _, hasAVX2 = range []bool{hasAVX2, false} {
		for range 20000 {
			b := make([]byte, 8*r.IntN(80))
			low := []uint64{0x1000, 0x7fff_ffff_f000, 0xffff_ffff_8000_0000, 0x8000_0000_0000_0000, 0x7fff_ffff_ffff_ff00}[r.IntN(5)]
			reach := []uint64{1, 100, 1 << 33}[r.IntN(3)]
			for at := 0; at < len(b); at += 8 {
				v := low - 1 - r.Uint64N(1<<40)
				if r.IntN(2) == 0 {
					v = low + reach + r.Uint64N(1<<40)
				}
				switch r.IntN(60) {
				case 0:
					v = low + r.Uint64N(reach)
				case 1:
					v = low + reach - 1
				case 2:
					v = r.Uint64()&^selectors | userCode
				}
				binary.LittleEndian.PutUint64(b[at:], v)
			}
			want, got := find(b, low, reach), skip(b, low, reach)
			if got > want || got < want-want%64 {
				t.Fatalf("vectors %v: of %d bytes %d are skipped, and %d are of no interest (low %#x, reach %#x)", hasAVX2, len(b), got, want, low, reach)
			}
		}
	}
}
