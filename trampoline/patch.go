package trampoline

import (
	"fmt"

	"hotpatch/internal/fault"
)

// Function is what is known of one function whose entry is to be overwritten.
type Function struct {
	Addr uint64 // its entry, F
	Code []byte // its bytes as they are in memory, from F to its end

	// After holds the bytes between its end and the next thing that is known to
	// be there. They are used only as far as they decode as padding.
	After []byte

	// Before holds the bytes between the end of whatever lies in front and F.
	// They are used only if all of them decode as padding.
	Before []byte

	// Parts is other code that belongs to it, such as its .cold part.
	Parts []Part
}

// Part is code of a function that stands apart from its entry.
type Part struct {
	Addr uint64
	Code []byte
}

// Range is the addresses from Start up to, but without, End.
type Range struct{ Start, End uint64 }

// Len gives the number of bytes in r.
func (r Range) Len() uint64 { return r.End - r.Start }

// Interior reports whether a lies strictly inside: neither at Start nor at End.
func (r Range) Interior(a uint64) bool { return r.Start < a && a < r.End }

// String gives the range as [start, end).
func (r Range) String() string { return fmt.Sprintf("[0x%x, 0x%x)", r.Start, r.End) }

// overlaps reports whether r and s have a byte in common.
func (r Range) overlaps(s Range) bool { return r.Start < s.End && s.Start < r.End }

// Form is the way in which an entry is rewritten.
type Form int

// The forms.
const (
	Near Form = iota + 1 // a jump of 5 bytes, which reaches 2 GiB
	Far                  // a jump of 14 bytes, which reaches everything
	Pad                  // a jump of 2 bytes into the padding in front, where one of the others stands
)

// String gives the form's name: near, far or pad.
func (f Form) String() string {
	switch f {
	case Near:
		return "near"
	case Far:
		return "far"
	case Pad:
		return "pad"
	}
	return fmt.Sprintf("form(%d)", int(f))
}

// Write is a place that is written: Len bytes from Addr.
type Write struct {
	Addr uint64
	Len  int
}

// Range gives the bytes written.
func (w Write) Range() Range { return Range{w.Addr, w.Addr + uint64(w.Len)} }

// Patch is how an entry will be rewritten.
type Patch struct {
	Form Form
	Site uint64 // where the first overwritten byte of the code is: F, or F+4 behind endbr64

	// Writes is what is written, in that order: for Pad the padding first. No
	// byte outside is touched: what remains of the last overwritten instruction
	// stays as it is.
	Writes []Write

	// Overwritten is the code that a thread could be running: [Site, Site+N).
	// The padding in front, which Pad writes too, is not in it: nothing runs
	// there before it is written.
	Overwritten Range

	// Returns are the addresses strictly inside Overwritten to which a call or a
	// system call in the overwritten bytes comes back. If it is empty, a stack
	// can hold an address inside Overwritten only where a signal interrupted.
	Returns []uint64

	// Boundaries are the addresses strictly inside Overwritten at which an
	// instruction begins, ascending: where a stopped thread can be.
	Boundaries []uint64

	Straddles bool // one of Writes lies across a page boundary
}

// Overlaps reports whether p and q write a byte in common. Two functions that
// stand side by side share the padding between them.
func (p Patch) Overlaps(q Patch) bool {
	for _, v := range p.Writes {
		for _, w := range q.Writes {
			if v.Range().overlaps(w.Range()) {
				return true
			}
		}
	}
	return false
}

// Encode gives the bytes for each of p.Writes that make the entry jump to dest.
//
// With a near jump a dest beyond 2 GiB is refused with "out-of-reach". A Patch
// that Judge did not make is refused with "malformed-patch" unless its form, site
// and writes fit together.
func (p Patch) Encode(dest uint64) ([][]byte, error) {
	if !p.consistent() {
		return nil, &fault.Error{
			Kind:  fault.Failed,
			Code:  "malformed-patch",
			What:  "cannot encode the jump",
			Where: fmt.Sprintf("0x%x", p.Site),
			Why:   fmt.Sprintf("form %v does not go with the writes %v", p.Form, p.Writes),
		}
	}
	main, err := jump(p.Writes[0], dest)
	if err != nil {
		return nil, err
	}
	if p.Form != Pad {
		return [][]byte{main}, nil
	}
	short, err := JumpShort(p.Site, p.Writes[0].Addr)
	if err != nil {
		return nil, err
	}
	return [][]byte{main, short[:]}, nil
}

func (p Patch) consistent() bool {
	w := p.Writes
	switch p.Form {
	case Near:
		return len(w) == 1 && w[0] == Write{p.Site, NearSize}
	case Far:
		return len(w) == 1 && w[0] == Write{p.Site, FarSize}
	case Pad:
		return len(w) == 2 && w[1] == Write{p.Site, ShortSize} && (w[0].Len == NearSize || w[0].Len == FarSize)
	}
	return false
}

func jump(w Write, dest uint64) ([]byte, error) {
	if w.Len == FarSize {
		b := JumpFar(dest)
		return b[:], nil
	}
	b, err := JumpNear(w.Addr, dest)
	if err != nil {
		return nil, err
	}
	return b[:], nil
}
