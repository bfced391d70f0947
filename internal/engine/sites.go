package engine

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
	"hotpatch/trampoline"
)

// findSlots finds the vtable slots of the functions to be replaced: by their
// value in memory, and by the ledger where an earlier patch has changed them.
func (pl *planner) findSlots() error {
	if pl.o.Method == Entry {
		return nil
	}
	targets := make(map[uint64]bool, len(pl.p.Replacements))
	for _, r := range pl.p.Replacements {
		targets[r.Old] = true
	}
	slots, others, err := pl.t.space.VTableSlots(pl.t.mem, targets)
	if err != nil {
		return err
	}
	for _, s := range slots {
		r := pl.byAddr[s.Value]
		r.Slots = append(r.Slots, s)
	}
	for _, s := range others {
		r := pl.byAddr[s.Value]
		if pl.o.Method == VTable {
			r.Notes = append(r.Notes, fmt.Sprintf("a pointer to it at %#x in %s is not in a vtable that can be proven to be one, and is not changed", s.Addr, s.Module.Name))
		}
	}
	l := pl.t.ledger
	for i := range l.Sites {
		site := &l.Sites[i]
		if site.Kind != ledger.VTable {
			continue
		}
		if r := pl.byAddr[l.Functions[site.Function].Entry]; r != nil {
			r.Slots = append(r.Slots, elfsym.Slot{Addr: site.Addr, Value: binary.LittleEndian.Uint64(site.Original), Module: pl.t.space.ModuleAt(site.Addr)})
		}
	}
	if pl.o.Method == VTable {
		// Some thunks are made for vtables that no class of the program has.
		pl.p.Replacements = slices.DeleteFunc(pl.p.Replacements, func(r *Replacement) bool { return r.Thunk && len(r.Slots) == 0 })
		for _, r := range pl.p.Replacements {
			if len(r.Slots) == 0 {
				pl.refuse(&fault.Error{Code: "no-vtable-slot", What: "cannot replace " + r.Name(), Where: fmt.Sprintf("%s, %#x", r.Module.Name, r.Old),
					Why: "no vtable in the process has it", Hint: "it is not virtual, or never used as such; use --method auto or entry"})
			}
		}
	}
	return nil
}

// checkSites refuses functions that were replaced before and whose sites are not
// what the ledger says, also those that this patch would not write again: what
// leads to the island must still lead there.
func (pl *planner) checkSites() error {
	err := pl.t.checkSites(func(entry uint64) bool { return pl.byAddr[entry] != nil })
	if err == nil {
		return nil
	}
	return pl.refuseErr(err)
}

// checkSites compares the sites of the functions that are meant, by their entries,
// with memory. The first one that differs is fault "memory-differs".
func (t *target) checkSites(meant func(entry uint64) bool) error {
	for i := range t.ledger.Sites {
		s := &t.ledger.Sites[i]
		if !meant(t.ledger.Functions[s.Function].Entry) {
			continue
		}
		want := s.InForce()
		live := make([]byte, len(want))
		if err := t.mem.ReadAt(live, s.Addr); err != nil {
			return err
		}
		if !bytes.Equal(live, want) {
			return t.differs(ledger.Edit{Addr: s.Addr, Old: want}, live)
		}
	}
	return nil
}

// judgeEntries decides how each entry is rewritten.
func (pl *planner) judgeEntries() error {
	if pl.o.Method == VTable {
		return nil
	}
	taken := make(map[uint64]*Replacement) // by every byte that is written
	for _, r := range pl.p.Replacements {
		err := pl.judgeEntry(r)
		if err == nil {
			err = pl.taken(r)
		}
		if err == nil {
			if o := takenBy(taken, r); o != nil {
				err = &fault.Error{Kind: fault.Unfit, Code: "sites-overlap", What: "cannot replace " + r.Name() + " and " + o.Name() + " together",
					Where: r.Module.Name, Why: fmt.Sprintf("the jumps at %#x and %#x would overlap", r.Jump.Site, o.Jump.Site)}
			}
		}
		if err == nil {
			continue
		}
		// A virtual function that has no room for a jump can still be reached
		// through its slots.
		if pl.o.Method == Auto && len(r.Slots) > 0 && fault.CodeOf(err) != "memory-differs" {
			r.HasEntry = false
			r.Notes = append(r.Notes, "only virtual calls are replaced: "+err.Error())
			continue
		}
		if err := pl.refuseErr(err); err != nil {
			return err
		}
	}
	return nil
}

// takenBy gives the last function before r that writes one of its bytes, or nil. From
// then on r has its bytes.
func takenBy(taken map[uint64]*Replacement, r *Replacement) (by *Replacement) {
	for _, w := range r.Jump.Writes {
		for at := w.Addr; at < w.Addr+uint64(w.Len); at++ {
			if o := taken[at]; o != nil {
				by = o
			}
			taken[at] = r
		}
	}
	return by
}

// taken refuses a jump that would overlap one that an earlier patch has written
// for another function: neighbours share the padding between them.
func (pl *planner) taken(r *Replacement) error {
	l := pl.t.ledger
	for _, w := range r.Jump.Writes {
		for _, s := range l.SitesIn(w.Addr, w.Addr+uint64(w.Len)) {
			if f := &l.Functions[s.Function]; f.Entry != r.Old {
				return &fault.Error{Kind: fault.Unfit, Code: "sites-overlap", What: "cannot replace " + r.Name(), Where: fmt.Sprintf("%s, %#x", r.Module.Name, r.Old),
					Why:  fmt.Sprintf("the jump of %d bytes at %#x would overlap the one at %#x, by which %s is replaced", w.Len, w.Addr, s.Addr, elfsym.Demangle(f.Name)),
					Hint: "revert the patch of that function first"}
			}
		}
	}
	return nil
}

// judgeEntry looks at one function's bytes.
func (pl *planner) judgeEntry(r *Replacement) error {
	f, err := pl.function(r)
	if err != nil {
		return err
	}
	if err := pl.unchanged(r, f); err != nil {
		return err
	}
	far := !canHaveIsland(pl.t.ledger, pl.t.space.Maps, r.Module)
	if known, isFar := pl.earlierJump(r); known {
		far = isFar
	}
	r.Jump, err = trampoline.Judge(f, far)
	if err != nil {
		if e, ok := err.(*fault.Error); ok {
			e.What = "cannot replace " + r.Name()
			e.Where = fmt.Sprintf("%s, %#x", r.Module.Name, r.Old)
			if e.Code == "short-function" && len(r.Slots) == 0 && pl.o.Method == Auto {
				e.Hint = "build the program with -falign-functions=16 to give every function room"
			}
		}
		return err
	}
	r.HasEntry = true
	r.Original = nil
	for _, w := range r.Jump.Writes {
		b := make([]byte, w.Len)
		if err := pl.read(b, w.Addr); err != nil {
			return err
		}
		r.Original = append(r.Original, b...)
	}
	if far {
		r.Notes = append(r.Notes, "no free memory within 2 GiB of "+r.Module.Name+": a 14-byte jump is used")
	}
	return nil
}

// function collects what trampoline needs to know of a function, with the bytes
// as they were before any patch.
func (pl *planner) function(r *Replacement) (trampoline.Function, error) {
	var none trampoline.Function
	sym := elfsym.Symbol{Name: r.Names[0], Module: r.Module, Addr: r.Old, Size: r.Size, Type: elf.STT_FUNC}
	end, next, prev, err := pl.t.space.Extent(sym)
	if err != nil {
		return none, err
	}
	const most = 64 << 20 // more than any function has
	if end <= r.Old || end-r.Old > most {
		return none, &fault.Error{Kind: fault.Unfit, Code: "unknown-extent", What: "cannot replace " + r.Name(), Where: fmt.Sprintf("%s, %#x", r.Module.Name, r.Old),
			Why: fmt.Sprintf("where it ends is not known (%#x)", end)}
	}
	r.Size = end - r.Old
	f := trampoline.Function{Addr: r.Old, Code: make([]byte, end-r.Old)}
	if err := pl.read(f.Code, f.Addr); err != nil {
		return none, err
	}
	const around = 64
	if next > end {
		f.After = make([]byte, min(next-end, around))
		if err := pl.read(f.After, end); err != nil {
			return none, err
		}
	}
	if prev < r.Old {
		n := min(r.Old-prev, around)
		f.Before = make([]byte, n)
		if err := pl.read(f.Before, r.Old-n); err != nil {
			return none, err
		}
	}
	parts, err := pl.t.space.Parts(sym)
	if err != nil {
		return none, err
	}
	for _, p := range parts {
		if p.Size == 0 || p.Size > most {
			continue
		}
		part := trampoline.Part{Addr: p.Addr, Code: make([]byte, p.Size)}
		if err := pl.read(part.Code, p.Addr); err != nil {
			return none, err
		}
		f.Parts = append(f.Parts, part)
	}
	return f, nil
}

func (pl *planner) read(b []byte, addr uint64) error { return pl.t.readOriginal(b, addr) }

// readOriginal reads memory of the target as it was before any patch.
func (t *target) readOriginal(b []byte, addr uint64) error {
	if err := t.mem.ReadAt(b, addr); err != nil {
		return err
	}
	end := addr + uint64(len(b))
	for _, s := range t.ledger.SitesIn(addr, end) {
		for j, v := range s.Original {
			if at := s.Addr + uint64(j); at >= addr && at < end {
				b[at-addr] = v
			}
		}
	}
	return nil
}

// unchanged refuses a function whose code is not what its file says and whose
// change is not ours: somebody else has written there.
func (pl *planner) unchanged(r *Replacement, f trampoline.Function) error {
	if r.Module.Image == nil || r.Module.Image.FromMemory() {
		return nil // nothing to compare with
	}
	file := make([]byte, len(f.Code))
	if err := r.Module.Image.ReadVaddr(file, r.Module.Vaddr(f.Addr)); err != nil {
		return err
	}
	if bytes.Equal(file, f.Code) {
		return nil
	}
	i := 0
	for i < len(file) && file[i] == f.Code[i] {
		i++
	}
	return &fault.Error{Kind: fault.Differs, Code: "memory-differs", What: "cannot replace " + r.Name(), Where: fmt.Sprintf("%s, %#x", r.Module.Name, r.Old),
		Why:  fmt.Sprintf("at byte %d the process has %#02x and the file that it was started from %#02x, and hotpatch did not write it", i, f.Code[i], file[i]),
		Hint: "a breakpoint, a uprobe or another patcher is in the function; it must be taken out first"}
}

// endbr64Size is the size of endbr64, which stays in front of a jump.
const endbr64Size = 4

// earlierJump tells whether an earlier patch, in force or reverted, rewrote the
// entry, and with which reach: a function keeps its kind of jump.
func (pl *planner) earlierJump(r *Replacement) (known, far bool) {
	l := pl.t.ledger
	if pl.functions == nil {
		pl.functions = l.FunctionsAt()
	}
	i, ok := pl.functions[r.Old]
	if !ok {
		return false, false
	}
	if l.Functions[i].Slot != 0 {
		return true, false
	}
	for _, s := range l.SitesIn(r.Old, r.Old+endbr64Size+1) {
		if s.Function == i && s.Kind == ledger.Entry {
			return true, true
		}
	}
	return false, false
}
