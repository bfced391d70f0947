package quiesce

import (
	"encoding/binary"

	"golang.org/x/sys/cpu"
)

// skipAVX2 gives the number of blocks of 64 bytes at p, blocks at the most, before
// the first one that has a word of interest.
//
//go:noescape
func skipAVX2(p *byte, blocks int, low, reach, selectors, userCode uint64) int

var hasAVX2 = cpu.X86.HasAVX2

// skip gives the offset of the first word of b, whose length is a multiple of 8, that
// may lie in [low, low+reach) or may be the selectors of a signal frame; if there is
// none, the length. It may stop too early, by less than 64 bytes.
func skip(b []byte, low, reach uint64) int {
	at := 0
	if hasAVX2 && len(b) >= 64 {
		if at = 64 * skipAVX2(&b[0], len(b)/64, low, reach, selectors, userCode); at+64 <= len(b) {
			return at
		}
	}
	for ; at+8 <= len(b); at += 8 {
		if v := binary.LittleEndian.Uint64(b[at:]); v-low < reach || v&selectors == userCode {
			return at
		}
	}
	return at
}
