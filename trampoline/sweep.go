package trampoline

import (
	"errors"
	"fmt"

	"hotpatch/internal/fault"
)

// A sweep decodes all code of a function and keeps the instructions that refer
// to something near its entry.
//
// It goes straight through from start to end, not along the branches: landing
// pads of exceptions and targets of jump tables are reached by nothing that can
// be seen. Then it follows the branches that go into the middle of an
// instruction already seen, as those that skip a lock prefix do. Every byte is
// decoded at most once, so the work is linear in the function's size.
type sweep struct {
	regions []region
	window  Range    // what is near the entry
	refs    []Inst   // instructions with a target or an operand in window
	pending []branch // direct branches within the function
	decoded int      // instructions decoded
}

type region struct {
	Range
	code []byte
	seen []bool // by offset: an instruction was decoded here
}

type branch struct{ from, to uint64 }

func sweepFunction(f Function) (*sweep, error) {
	s := &sweep{window: Range{
		f.Addr - uint64(len(f.Before)),
		f.Addr + uint64(min(len(f.Code)+len(f.After), len(endbr64)+FarSize)),
	}}
	s.add(f.Addr, f.Code)
	for _, p := range f.Parts {
		s.add(p.Addr, p.Code)
	}
	for i := range s.regions {
		if err := s.straight(&s.regions[i]); err != nil {
			return nil, err
		}
	}
	for len(s.pending) > 0 {
		b := s.pending[len(s.pending)-1]
		s.pending = s.pending[:len(s.pending)-1]
		if err := s.follow(b); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *sweep) add(addr uint64, code []byte) {
	s.regions = append(s.regions, region{
		Range: Range{addr, addr + uint64(len(code))},
		code:  code,
		seen:  make([]bool, len(code)),
	})
}

// straight decodes a region from its start to its end.
func (s *sweep) straight(r *region) error {
	var last Inst
	for off := 0; off < len(r.code); off += last.Len {
		in, err := s.decode(r, off)
		if err != nil {
			if last.Ends() {
				return explain(err, fmt.Sprintf("it stands behind the %s at 0x%x, so it may be data", last.Op, last.Addr))
			}
			return explain(err, "")
		}
		last = in
	}
	return nil
}

// follow decodes from the target of a branch until it meets what has been seen.
func (s *sweep) follow(b branch) error {
	r := s.find(b.to)
	for off := int(b.to - r.Start); off < len(r.code) && !r.seen[off]; {
		in, err := s.decode(r, off)
		if err != nil {
			return explain(err, fmt.Sprintf("the branch at 0x%x leads there", b.from))
		}
		if in.Ends() {
			break
		}
		off += in.Len
	}
	return nil
}

// decode decodes the instruction at an offset of a region, and notes it.
func (s *sweep) decode(r *region, off int) (Inst, error) {
	in, err := Decode(r.code[off:], r.Start+uint64(off))
	if err != nil {
		return Inst{}, err
	}
	s.decoded++
	r.seen[off] = true
	if _, near := in.refersTo(s.window); near {
		s.refs = append(s.refs, in)
	}
	if in.HasTarget && s.find(in.Target) != nil {
		s.pending = append(s.pending, branch{in.Addr, in.Target})
	}
	return in, nil
}

// find gives the region in which an address lies, or nil.
func (s *sweep) find(addr uint64) *region {
	for i := range s.regions {
		if r := &s.regions[i]; r.Start <= addr && addr < r.End {
			return r
		}
	}
	return nil
}

// explain turns a fault of Decode into one of Judge.
func explain(err error, more string) error {
	var e *fault.Error
	if !errors.As(err, &e) {
		return err
	}
	e.What = "cannot decode the whole function, so a branch into its first bytes cannot be ruled out"
	if more != "" {
		e.Why += "; " + more
	}
	e.Hint = "use --method vtable if the function is virtual"
	return e
}
