package engine

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/trampoline"
)

// checkIntruders looks for branches from other functions into the bytes that are
// to be overwritten: hand-written code enters a neighbour behind its first
// instruction, as some of the variants of memcpy in glibc do. Every place in the
// module's code is looked at where the bytes can be a direct branch there.
func (pl *planner) checkIntruders() error {
	byModule := make(map[*elfsym.Module][]*Replacement)
	for _, r := range pl.p.Replacements {
		if r.HasEntry {
			byModule[r.Module] = append(byModule[r.Module], r)
		}
	}
	for m, list := range byModule {
		sort.Slice(list, func(i, j int) bool { return list[i].Jump.Overwritten.Start < list[j].Jump.Overwritten.Start })
		if err := pl.intrudersInto(m, list); err != nil {
			return err
		}
	}
	return nil
}

func (pl *planner) intrudersInto(m *elfsym.Module, list []*Replacement) error {
	if m.Image == nil {
		return nil
	}
	low, high := list[0].Jump.Overwritten.Start, list[len(list)-1].Jump.Overwritten.End
	into := func(target uint64) *Replacement {
		if target <= low || target >= high {
			return nil
		}
		i := sort.Search(len(list), func(i int) bool { return list[i].Jump.Overwritten.Start >= target })
		if i > 0 && list[i-1].Jump.Overwritten.Interior(target) {
			return list[i-1]
		}
		return nil
	}
	// The code is read in pieces that stay in the processor's cache. A branch that begins in one
	// may end behind it.
	const piece, longest = 1 << 16, 6
	buf := make([]byte, piece+longest-1)
	for _, seg := range m.Image.Segments() {
		if seg.Type != elf.PT_LOAD || seg.Flags&elf.PF_X == 0 {
			continue
		}
		base, end := m.Addr(seg.Vaddr), m.Addr(seg.Vaddr+seg.Filesz)
		hit := func(at uint64, size int, r *Replacement, target uint64) {
			if at < r.Old+r.Size && at >= r.Old || pl.notAnInstruction(at, size) {
				return // Judge has looked at the function itself
			}
			pl.intruder(r, at, target)
		}
		for at := base; at < end; at += piece {
			code := buf[:min(uint64(len(buf)), end-at)]
			if err := pl.read(code, at); err != nil {
				return err
			}
			nearBranches(code, min(piece, len(code)), func(i, size int, distance int32) {
				target := at + uint64(i+size) + uint64(int64(distance))
				if r := into(target); r != nil {
					hit(at+uint64(i), size, r, target)
				}
			})
		}
		for _, r := range list {
			// Short branches reach 127 bytes.
			from, to := max(r.Jump.Site, base+130)-130, min(r.Jump.Overwritten.End+130, end)
			if from >= to {
				continue // in another segment
			}
			code := buf[:min(uint64(len(buf)), to-from)]
			if err := pl.read(code, from); err != nil {
				return err
			}
			for i := 0; i+1 < len(code); i++ {
				if b := code[i]; b != 0xeb && b&0xf0 != 0x70 && b&0xfc != 0xe0 {
					continue
				}
				at := from + uint64(i)
				target := at + 2 + uint64(int64(int8(code[i+1])))
				if r.Jump.Overwritten.Interior(target) {
					hit(at, 2, r, target)
				}
			}
		}
	}
	return nil
}

// nearBranches visits what can be a branch with a 32-bit distance, of those that begin in the
// first n bytes of code.
func nearBranches(code []byte, n int, visit func(i, size int, distance int32)) {
	for i, b := range code[:min(n, max(len(code), 4)-4)] {
		size := branchSizes[b]
		if size == 0 || size == 6 && (code[i+1]&0xf0 != 0x80 || i+6 > len(code)) {
			continue
		}
		visit(i, size, int32(binary.LittleEndian.Uint32(code[i+size-4:])))
	}
}

// branchSizes are the bytes that a branch with a 32-bit distance has, by the first one.
var branchSizes = [256]int{0xe8: 5, 0xe9: 5, 0x0f: 6} // call, jmp; jcc, whose second byte is 0x8?

// notAnInstruction reports whether no instruction of the function around begins
// at an address: then the bytes there only look like a branch.
func (pl *planner) notAnInstruction(at uint64, size int) bool {
	start, end, ok := pl.around(at)
	if !ok || end <= at || end-start > 1<<20 {
		return false
	}
	code := make([]byte, end-start)
	if pl.read(code, start) != nil {
		return false
	}
	for pc := start; pc < at; {
		in, err := trampoline.Decode(code[pc-start:], pc)
		if err != nil {
			return false
		}
		if pc = in.Next(); pc > at {
			return true
		}
	}
	in, err := trampoline.Decode(code[at-start:], at)
	return err == nil && in.Len != size
}

// around gives the bounds of the function that has an address: of its symbol, or of its
// frame if it has none.
func (pl *planner) around(at uint64) (start, end uint64, ok bool) {
	f, _, ok := pl.t.space.FuncAt(at)
	if !ok {
		return pl.t.space.Unnamed(at)
	}
	end, _, _, err := pl.t.space.Extent(f)
	return f.Addr, end, err == nil
}

// intruder refuses a function that another one enters behind its entry; a virtual
// one can still be reached through its slots.
func (pl *planner) intruder(r *Replacement, at, target uint64) {
	e := &fault.Error{Kind: fault.Unfit, Code: "branch-into-prologue", What: "cannot replace " + r.Name(), Where: fmt.Sprintf("%s, %#x", r.Module.Name, r.Old),
		Why:  fmt.Sprintf("the code at %s branches to %#x, inside the %d bytes that would be overwritten", pl.t.place(at), target, r.Jump.Overwritten.Len()),
		Hint: "the function has a second entry; replace the functions that call it instead"}
	if pl.o.Method == Auto && len(r.Slots) > 0 {
		r.HasEntry = false
		r.Notes = append(r.Notes, "only virtual calls are replaced: "+e.Error())
		return
	}
	if !slices.ContainsFunc(pl.refused, func(f *fault.Error) bool { return f.What == e.What && f.Code == e.Code }) {
		pl.refuse(e)
	}
}
