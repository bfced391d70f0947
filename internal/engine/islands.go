package engine

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"hotpatch/elfsym"
	"hotpatch/inject"
	"hotpatch/internal/ledger"
	"hotpatch/internal/procfs"
	"hotpatch/trampoline"
)

var (
	errNoHole = errors.New("no free place in reach")
	errExist  = unix.EEXIST
)

// reach is how far a near jump goes, less some room for the island itself.
const reach = 1<<31 - 1<<20

// islandSize is an island's two pages.
const islandSize = trampoline.IslandCodeSize + trampoline.IslandDataSize

// islandRange is where an island for the module must be, so that a near jump
// gets there from every address of the module.
func islandRange(m *elfsym.Module) (lo, hi uint64) {
	if m.Hi > reach {
		lo = m.Hi - reach
	}
	return lo, m.Lo + reach
}

// islandWish is where an island is put if there is room: below the module, where
// neither the heap nor the stack grows.
func islandWish(m *elfsym.Module) uint64 {
	const gap = 2 << 20
	if m.Lo > 2*gap {
		return m.Lo - gap
	}
	return m.Lo
}

// canHaveIsland reports whether there is an island with a free slot for the
// module, or a hole where one could be.
func canHaveIsland(l *ledger.Ledger, maps []procfs.Map, m *elfsym.Module) bool {
	lo, hi := islandRange(m)
	if findIsland(l, lo, hi) >= 0 {
		return true
	}
	_, ok := inject.Hole(maps, islandWish(m), lo, hi, islandSize, 0x1000)
	return ok
}

// findIsland gives the index of an island within [lo, hi) that has a free slot,
// or -1.
func findIsland(l *ledger.Ledger, lo, hi uint64) int {
	for i, is := range l.Islands {
		if is.Used < trampoline.IslandSlots && is.Code >= lo && is.Data+trampoline.IslandDataSize <= hi {
			return i
		}
	}
	return -1
}

// takeSlot gives a free slot of an island near the module, mapping a new island
// if need be. The new island is in l then, and in made for the case that
// everything must be taken back.
func (t *target) takeSlot(l *ledger.Ledger, m *elfsym.Module, agent *inject.Agent, made *[]ledger.Island) (code, word uint64, err error) {
	lo, hi := islandRange(m)
	i := findIsland(l, lo, hi)
	if i < 0 {
		at, err := t.mapNear(agent, islandWish(m), lo, hi, islandSize, protRead|protExec)
		if err != nil {
			return 0, 0, fmt.Errorf("map an island for %s: %w", m.Name, err)
		}
		is := ledger.Island{Module: ledger.Clean(m.Name), BuildID: m.BuildID.String(), Code: at, Data: at + trampoline.IslandCodeSize}
		*made = append(*made, is)
		if err := t.dataPage(agent, is.Data); err != nil {
			return 0, 0, err
		}
		if err := t.writeMem(trampoline.IslandCode(), is.Code); err != nil {
			return 0, 0, err
		}
		l.Islands = append(l.Islands, is)
		i = len(l.Islands) - 1
	}
	is := &l.Islands[i]
	code, word = slotAddrs(*is, is.Used)
	is.Used++
	return code, word, nil
}

// dataPage takes execution away from an island's second page.
func (t *target) dataPage(agent *inject.Agent, at uint64) error {
	return agent.Protect(at, trampoline.IslandDataSize, protRead)
}

// slotAddrs gives the address of an island's slot and of its target word.
func slotAddrs(is ledger.Island, slot int) (code, word uint64) {
	return is.Code + uint64(slot)*trampoline.SlotSize, is.Data + uint64(slot)*8
}

// slotWord gives the address of the target word of a slot that was given away.
func slotWord(l *ledger.Ledger, code uint64) (uint64, bool) {
	for _, is := range l.Islands {
		if code >= is.Code && code < is.Code+trampoline.IslandCodeSize {
			_, word := slotAddrs(is, int(code-is.Code)/trampoline.SlotSize)
			return word, true
		}
	}
	return 0, false
}
