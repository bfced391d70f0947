package engine

import (
	"bytes"
	"context"
	"errors"
	"os"

	"hotpatch/elfsym"
	"hotpatch/inject"
	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
	"hotpatch/internal/procfs"
	"hotpatch/trampoline"
)

// List reads the ledger of a process and compares it with memory. It attaches to
// nothing and changes nothing.
func List(pid int) (*ProcessState, error) { return look(pid, false) }

// Verify is List with every site that differs, and the modules that came after a
// patch and have functions that it replaces.
func Verify(pid int) (*ProcessState, error) { return look(pid, true) }

func look(pid int, deep bool) (*ProcessState, error) {
	t, err := open(context.Background(), pid, false, nil)
	if err != nil {
		return nil, err
	}
	defer t.close()
	s := &ProcessState{PID: pid, Program: t.program(), Exe: t.exe, Patches: []PatchState{}}
	if err := t.describe(s); err != nil {
		return nil, err
	}
	if deep {
		if err := t.latecomers(s); err != nil {
			return nil, err
		}
		if t.space != nil {
			t.alteredLibraries(s)
		}
	}
	return s, nil
}

// describe fills in what the ledger says and what memory says to it.
func (t *target) describe(s *ProcessState) error {
	l := t.ledger
	s.Interrupted = l.Txn != nil && !t.done
	view := l
	if l.Txn != nil && t.done {
		view = l.Txn.After
	}
	differing := make(map[uint64]bool) // patches
	var differences []Difference
	for i := range view.Sites {
		site := &view.Sites[i]
		want := site.InForce()
		live := make([]byte, len(want))
		if err := t.mem.ReadAt(live, site.Addr); err != nil {
			// The module may have been unloaded.
			live = nil
		}
		if bytes.Equal(live, want) || s.Interrupted && inTransition(l.Txn, site.Addr, live) {
			continue
		}
		f := view.Functions[site.Function]
		d := Difference{Address: Hex(site.Addr), Kind: string(site.Kind), Function: elfsym.Demangle(f.Name), Mangled: f.Name, Module: f.Module, Want: HexBytes(want), Have: HexBytes(live)}
		if len(site.Layers) > 0 {
			for _, layer := range site.Layers {
				differing[layer.Patch] = true
			}
		}
		differences = append(differences, d)
	}
	s.Differences = append(differences, t.damagedIslands(view)...)
	for i := range view.Patches {
		p := &view.Patches[i]
		if p.State == ledger.Loading {
			continue
		}
		s.Patches = append(s.Patches, patchState(view, p, differing[p.ID]))
	}
	return nil
}

// damagedIslands compares the code of the slots that are given away.
func (t *target) damagedIslands(l *ledger.Ledger) []Difference {
	want := trampoline.IslandCode()
	var out []Difference
	for i := range l.Functions {
		f := &l.Functions[i]
		if f.Slot == 0 {
			continue
		}
		live := make([]byte, trampoline.SlotSize)
		if t.mem.ReadAt(live, f.Slot) != nil {
			live = nil
		}
		if !bytes.Equal(live, want[:trampoline.SlotSize]) {
			out = append(out, Difference{Address: Hex(f.Slot), Kind: "island", Function: elfsym.Demangle(f.Name), Mangled: f.Name, Module: f.Module, Want: want[:trampoline.SlotSize], Have: live})
		}
	}
	return out
}

// inTransition reports whether a site that differs is one that an interrupted
// transaction had begun to write.
func inTransition(txn *ledger.Txn, addr uint64, live []byte) bool {
	for _, e := range txn.Edits {
		if e.Addr == addr && (bytes.Equal(live, e.New) || bytes.Equal(live, e.Old)) {
			return true
		}
	}
	return false
}

// latecomers finds functions of the names that patches replace in modules that
// are not patched: libraries that were opened after the patch.
func (t *target) latecomers(s *ProcessState) error {
	if len(t.ledger.Functions) == 0 || len(s.Patches) == 0 {
		return nil
	}
	if err := t.resolve(nil); err != nil {
		return err
	}
	patched := make(map[string]map[uint64]bool)
	var names []string
	for _, p := range t.ledger.Patches {
		if p.State != ledger.Active {
			continue
		}
		for _, r := range p.Replaced {
			if patched[r.Function] == nil {
				patched[r.Function] = make(map[uint64]bool)
				names = append(names, r.Function)
			}
			patched[r.Function][r.Old] = true
		}
	}
	found, err := t.space.Lookup(names)
	if err != nil {
		return err
	}
	for _, name := range names {
		for _, sym := range found[name] {
			if sym.IsFunc() && !patched[name][sym.Addr] {
				s.Unpatched = append(s.Unpatched, sym.String())
			}
		}
	}
	return nil
}

// ListAll looks at every process of the host. Processes that cannot be looked at
// are counted, not reported one by one.
func ListAll(deep bool) (*HostState, error) {
	pids, err := procfs.Processes()
	if err != nil {
		return nil, err
	}
	h := &HostState{Processes: []*ProcessState{}}
	var maps []byte
	for _, pid := range pids {
		if pid == os.Getpid() {
			continue
		}
		// Nearly all processes have nothing, and their mappings tell.
		if maps, err = procfs.ReadMaps(pid, maps); err == nil && len(maps) > 0 && !inject.MayHaveRegion(maps) {
			h.Examined++
			continue
		}
		s, err := look(pid, deep)
		var e *fault.Error
		switch {
		case err == nil:
			h.Examined++
			if len(s.Patches) > 0 || s.Interrupted {
				h.Processes = append(h.Processes, s)
			}
		case errors.As(err, &e) && e.Kind == fault.NoAccess:
			switch e.Code {
			case "kernel-thread", "zombie", "no-such-process", "no-such-thread", "memory-gone":
			default:
				h.Inaccessible++
			}
		default:
			// One odd process must not hide the others.
			h.Processes = append(h.Processes, &ProcessState{PID: pid, Patches: []PatchState{}, Error: err.Error(), ErrorCode: fault.CodeOf(err)})
			h.Damaged++
		}
	}
	return h, nil
}
