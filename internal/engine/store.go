package engine

import (
	"bytes"
	"errors"
	"fmt"

	"hotpatch/inject"
	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
)

// Areas begin at 64 KiB and grow by powers of two.
const firstArea = 64 << 10

// writeMem writes to the target and reads back what it wrote. It works on pages
// that the target cannot write.
func (t *target) writeMem(b []byte, addr uint64) error {
	if err := t.mem.WriteAt(b, addr); err != nil {
		// The kernel may forbid forced writes but to a tracer
		// (proc_mem.force_override).
		if t.tracer == nil || t.tracer.Poke(b, addr, stopLimit) != nil {
			return err
		}
	}
	got := make([]byte, len(b))
	if err := t.mem.ReadAt(got, addr); err != nil {
		return err
	}
	if !bytes.Equal(got, b) {
		return &fault.Error{Kind: fault.Failed, Code: "write-lost", What: "cannot write memory", Where: fmt.Sprintf("%#x", addr), Why: "the bytes read back are not those written"}
	}
	return nil
}

// save puts a ledger in force. Precondition: reserve has made room for it.
func (t *target) save(l *ledger.Ledger) error {
	l.Generation = t.ledger.Generation
	writes, err := l.Writes(t.region.Root())
	if err != nil {
		return err
	}
	for _, w := range writes {
		if err := t.writeMem(w.Bytes, w.Addr); err != nil {
			return err
		}
	}
	l.Generation++
	t.ledger, t.done = l, false
	return nil
}

// reserve sees to it that there is room for l in both areas, so that neither it
// nor what follows it needs memory. Larger areas are mapped by the agent; without one the fault is
// "ledger-full". The areas that are given up are unmapped when l is saved.
func (t *target) reserve(l *ledger.Ledger, agent *inject.Agent) error {
	body, err := ledger.Encode(l)
	if err != nil {
		return err
	}
	need := uint64(len(body))
	size := uint64(firstArea)
	for size < need+need/4 {
		size *= 2
	}
	for i := range l.Areas {
		if l.Areas[i].Len >= need {
			continue
		}
		if agent == nil {
			return &fault.Error{Kind: fault.Failed, Code: "ledger-full", What: "cannot write the ledger",
				Why: fmt.Sprintf("it needs %d bytes and there are %d", need, l.Areas[i].Len)}
		}
		addr, err := t.mapNear(agent, t.region.Base, 0, ^uint64(0), size, protRead)
		if err != nil {
			return err
		}
		l.Areas[i] = ledger.Area{Addr: addr, Len: size}
	}
	if l.Txn != nil && l.Txn.After != nil {
		l.Txn.After.Areas = l.Areas
	}
	return nil
}

// saveWith reserves room, saves, and unmaps the areas that l no longer uses.
func (t *target) saveWith(l *ledger.Ledger, agent *inject.Agent) error {
	old := t.ledger.Areas
	if err := t.reserve(l, agent); err != nil {
		return err
	}
	if err := t.save(l); err != nil {
		return err
	}
	for i, a := range old {
		if a.Len != 0 && a != l.Areas[i] {
			if err := agent.Unmap(a.Addr, a.Len); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	protRead = 1 // PROT_READ
	protExec = 4 // PROT_EXEC
)

// mapNear has the agent map memory at a free place near want within [lo, hi).
// The place may be taken by the target between looking and mapping: then it
// looks again.
func (t *target) mapNear(agent *inject.Agent, want, lo, hi, size, prot uint64) (uint64, error) {
	var last error
	for try := 0; try < 10; try++ {
		maps, err := t.proc.Maps()
		if err != nil {
			return 0, err
		}
		addr, ok := inject.Hole(maps, want, lo, hi, size, 0x1000)
		if !ok {
			return 0, errNoHole
		}
		if last = agent.Map(addr, size, prot); last == nil {
			return addr, nil
		}
		if fault.CodeOf(last) != "no-memory" || !errors.Is(last, errExist) {
			return 0, last
		}
	}
	return 0, last
}
