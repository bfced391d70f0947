package trampoline

import (
	"bytes"
	"fmt"

	"hotpatch/internal/fault"
)

// endbr64 stays where it is: the jump goes behind it, so that an indirect call
// still lands on it when the processor tracks branches (SDM volume 1, 17.3).
var endbr64 = []byte{0xf3, 0x0f, 0x1e, 0xfa}

// pageSize is the unit in which memory is mapped and protected.
const pageSize = 4096

// Judge says how the entry of f can be rewritten so that it jumps elsewhere, or
// why it cannot. The jump is near unless far is set, which is for the case that
// no island can be had within 2 GiB.
//
// The jump goes into the entry itself if it fits there; else into the padding in
// front, reached by a jump of 2 bytes. It fits if the function and the verified
// padding behind it are long enough, and if no direct branch and no operand
// relative to RIP anywhere in the function refers to the inside of the bytes
// that are overwritten. To know that, the whole function is decoded.
//
// The padding between two functions can serve both. The one in front takes its
// lowest bytes and the one behind its highest, and a far jump takes the padding
// behind only if there is no room in front; still, whoever patches both must ask
// Patch.Overlaps.
//
// It knows no targets of indirect jumps, such as those of a jump table. They
// cannot be reached once nobody runs the function: that is the caller's to prove.
//
// The faults, all Unfit: "unknown-instruction", "short-function",
// "branch-into-prologue", "reference-into-prologue", and "bad-function-range"
// where the parts of f contradict each other.
func Judge(f Function, far bool) (Patch, error) {
	if err := f.check(); err != nil {
		return Patch{}, err
	}
	s, err := sweepFunction(f)
	if err != nil {
		return Patch{}, err
	}
	j := judge{f: f, site: f.Addr, refs: s.refs}
	if bytes.HasPrefix(f.Code, endbr64) {
		j.site += uint64(len(endbr64))
	}
	form, size := Near, NearSize
	if far {
		form, size = Far, FarSize
	}
	p, inPlace := j.inPlace(form, size)
	if inPlace == nil && (!far || p.Overwritten.End <= f.Addr+uint64(len(f.Code))) {
		return p, nil
	}
	padded, inPad := j.inPad(size)
	switch {
	case inPad == nil:
		return padded, nil
	case inPlace == nil:
		return p, nil
	}
	inPlace.Why += "; in front of the function, " + inPad.Why
	return Patch{}, inPlace
}

// check refuses what would make arithmetic on addresses wrong.
func (f Function) check() error {
	bad := func(why string, args ...any) error {
		return &fault.Error{
			Kind:  fault.Unfit,
			Code:  "bad-function-range",
			What:  "cannot overwrite the entry",
			Where: fmt.Sprintf("0x%x", f.Addr),
			Why:   fmt.Sprintf(why, args...),
		}
	}
	own := Range{f.Addr - uint64(len(f.Before)), f.Addr + uint64(len(f.Code)) + uint64(len(f.After))}
	if own.Start > f.Addr || own.End < f.Addr {
		return bad("%d bytes before and %d bytes behind it do not fit into the address space",
			len(f.Before), len(f.Code)+len(f.After))
	}
	for _, p := range f.Parts {
		r := Range{p.Addr, p.Addr + uint64(len(p.Code))}
		if r.End < r.Start {
			return bad("a part of %d bytes at 0x%x does not fit into the address space", len(p.Code), p.Addr)
		}
		if r.overlaps(own) {
			return bad("its part %v overlaps the function or its padding %v", r, own)
		}
	}
	return nil
}

type judge struct {
	f    Function
	site uint64
	refs []Inst // the instructions that refer to something near the entry
}

// inPlace tries a jump of size bytes at the site.
func (j *judge) inPlace(form Form, size int) (Patch, *fault.Error) {
	p := Patch{Form: form, Site: j.site, Writes: []Write{{j.site, size}}}
	if err := j.overwrite(&p, size); err != nil {
		return Patch{}, err
	}
	p.Straddles = straddles(p.Writes)
	return p, nil
}

// inPad tries a jump of size bytes in the padding in front, and the short jump
// to it at the site.
func (j *judge) inPad(size int) (Patch, *fault.Error) {
	pad, err := j.findPad(size)
	if err != nil {
		return Patch{}, err
	}
	p := Patch{Form: Pad, Site: j.site, Writes: []Write{pad, {j.site, ShortSize}}}
	if err := j.overwrite(&p, ShortSize); err != nil {
		return Patch{}, err
	}
	p.Straddles = straddles(p.Writes)
	return p, nil
}

// findPad chooses the last place in the padding in front where an instruction
// begins and size bytes fit: whoever fell through the padding before would still
// run whole instructions, and arrive at the new function as before.
func (j *judge) findPad(size int) (Write, *fault.Error) {
	have := len(j.f.Before)
	lens, sum := padding(j.f.Before)
	if sum != have {
		return Write{}, j.refuse("short-function",
			fmt.Sprintf("the byte at 0x%x is no padding", j.f.Addr-uint64(have-sum)))
	}
	at, off := -1, 0
	for _, n := range lens {
		if off+size <= have {
			at = off
		}
		off += n
	}
	if at < 0 {
		return Write{}, j.refuse("short-function",
			fmt.Sprintf("%d of %d bytes of padding are available", have, size))
	}
	w := Write{j.f.Addr - uint64(have-at), size}
	if _, err := JumpShort(j.site, w.Addr); err != nil {
		return Write{}, j.refuse("short-function",
			fmt.Sprintf("the padding at 0x%x is beyond the reach of a short jump", w.Addr))
	}
	for _, in := range j.refs {
		if a, is := in.refersTo(w.Range()); is {
			return Write{}, j.refuse("branch-into-prologue",
				fmt.Sprintf("%s at 0x%x refers to 0x%x in the padding %v", in, in.Addr, a, w.Range()))
		}
	}
	return w, nil
}

// refersTo reports whether the instruction branches to, or addresses relative to
// RIP, a byte of r.
func (in Inst) refersTo(r Range) (uint64, bool) {
	switch {
	case in.HasTarget && r.Start <= in.Target && in.Target < r.End:
		return in.Target, true
	case in.RIPRel && r.Start <= in.RIPTarget && in.RIPTarget < r.End:
		return in.RIPTarget, true
	}
	return 0, false
}

// overwrite checks that size bytes from the site can be overwritten, and fills in
// what is known about them.
func (j *judge) overwrite(p *Patch, size int) *fault.Error {
	ins, have := j.prologue(size)
	if have < size {
		return j.short(size)
	}
	p.Overwritten = Range{j.site, j.site + uint64(size)}
	for _, in := range ins {
		if p.Overwritten.Interior(in.Addr) {
			p.Boundaries = append(p.Boundaries, in.Addr)
		}
		if p.Overwritten.Interior(in.Next()) {
			switch in.Flow {
			case Call, IndirectCall, Syscall:
				p.Returns = append(p.Returns, in.Next())
			}
		}
	}
	return j.checkRefs(p.Overwritten)
}

// prologue gives the instructions from the site on, padding behind the function
// included, until they cover size bytes; have is how many bytes they cover.
func (j *judge) prologue(size int) (ins []Inst, have int) {
	code := j.f.Code[j.site-j.f.Addr:]
	for have < size && have < len(code) {
		in, err := Decode(code[have:], j.site+uint64(have))
		if err != nil {
			return ins, have // the sweep has decoded them all: cannot be
		}
		ins, have = append(ins, in), have+in.Len
	}
	for rest := j.f.After; have < size; {
		n := NopLen(rest)
		if n == 0 {
			break
		}
		ins = append(ins, Inst{Addr: j.site + uint64(have), Len: n, Bytes: rest[:n], Op: "nop", Flow: Nop})
		rest, have = rest[n:], have+n
	}
	return ins, have
}

func (j *judge) checkRefs(over Range) *fault.Error {
	for _, in := range j.refs {
		if in.HasTarget && over.Interior(in.Target) {
			return j.refuse("branch-into-prologue", fmt.Sprintf(
				"%s at 0x%x goes to 0x%x, inside the %d bytes %v that would be overwritten",
				in, in.Addr, in.Target, over.Len(), over))
		}
		if in.RIPRel && over.Interior(in.RIPTarget) {
			return j.refuse("reference-into-prologue", fmt.Sprintf(
				"%s at 0x%x refers to 0x%x, inside the %d bytes %v that would be overwritten",
				in, in.Addr, in.RIPTarget, over.Len(), over))
		}
	}
	return nil
}

// Room is the Details of a "short-function" fault, in bytes.
type Room struct {
	Have int `json:"have"` // padding behind the function included
	Need int `json:"need"`
}

func (j *judge) short(size int) *fault.Error {
	code := len(j.f.Code) - int(j.site-j.f.Addr)
	_, pad := padding(j.f.After)
	why := fmt.Sprintf("%d of %d bytes are available (%d of the function", code+pad, size, code)
	if j.site != j.f.Addr {
		why += " behind endbr64"
	}
	why += fmt.Sprintf(" and %d of padding)", pad)
	err := j.refuse("short-function", why)
	err.Details = Room{Have: code + pad, Need: size}
	return err
}

func (j *judge) refuse(code, why string) *fault.Error {
	hint := "use --method vtable if the function is virtual"
	if code == "short-function" {
		hint += ", or build the target with -falign-functions=16"
	}
	return &fault.Error{
		Kind:  fault.Unfit,
		Code:  code,
		What:  "cannot overwrite the entry",
		Where: fmt.Sprintf("0x%x", j.f.Addr),
		Why:   why,
		Hint:  hint,
	}
}

func straddles(writes []Write) bool {
	for _, w := range writes {
		if w.Addr/pageSize != (w.Addr+uint64(w.Len)-1)/pageSize {
			return true
		}
	}
	return false
}
