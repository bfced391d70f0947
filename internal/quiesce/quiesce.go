// Package quiesce finds out who stands in the way of an edit: which stopped
// threads have an address in their registers or on their stacks that must not be
// there while code is being overwritten.
//
// It is sound before it is precise: every aligned word of a stack, from the
// stack pointer to the end of its mapping, counts as a return address. A word
// that only looks like one makes a thread wait in vain; no real one is missed.
// What it cannot see are stacks that are nobody's current stack, such as those
// of suspended coroutines.
//
// Check is meant for the pause: it reads no file and, once a Checker is made,
// allocates only for what it finds.
package quiesce

import (
	"encoding/binary"
	"sort"

	"hotpatch/internal/procfs"
)

// Range is a piece of code. Its interior, every address but the first one and
// the one behind the last, must be free: who is at the first byte runs whatever
// stands there afterwards.
type Range struct {
	Start, End uint64
	Name       string // of the function, for messages
}

// Where says in which place of a thread an address was found.
type Where string

// The places.
const (
	AtPC    Where = "pc"    // the thread is about to execute there
	OnStack Where = "stack" // the thread returns there
)

// Blocker is a thread in the way, with the evidence.
type Blocker struct {
	TID      int    `json:"thread"`
	Thread   string `json:"name"`
	Function string `json:"function"`
	Addr     uint64 `json:"address"` // the address that was found
	Where    Where  `json:"where"`
	At       uint64 `json:"at,omitempty"` // where on the stack it stands
}

// Thread is what is known of one stopped thread.
type Thread struct {
	TID    int
	PC, SP uint64
	// InSyscall says that the thread was stopped in a system call, which the
	// kernel may start again two bytes before PC.
	InSyscall bool
}

// Checker compares threads with ranges.
type Checker struct {
	pc, stack index
	maps      []procfs.Map
	mem       procfs.Memory
	buf       []byte
}

// New prepares a check. pc are the ranges in which no thread may be; stack are
// those to which no thread may return. maps are the mappings of the process, from before the
// pause, in ascending order.
func New(pc, stack []Range, maps []procfs.Map, mem procfs.Memory) *Checker {
	return &Checker{pc: newIndex(pc), stack: newIndex(stack), maps: maps, mem: mem, buf: make([]byte, 64<<10)}
}

// index finds the range that has an address inside.
type index struct {
	ranges   []Range
	low, len uint64 // all interiors lie in [low, low+len)
}

func newIndex(ranges []Range) index {
	x := index{ranges: append([]Range(nil), ranges...)}
	sort.Slice(x.ranges, func(i, j int) bool { return x.ranges[i].Start < x.ranges[j].Start })
	if n := len(x.ranges); n > 0 {
		x.low = x.ranges[0].Start
		for _, r := range x.ranges {
			x.len = max(x.len, r.End-x.low)
		}
	}
	return x
}

// find gives the range whose interior has addr. Ranges do not overlap, as
// functions do not.
func (x *index) find(addr uint64) *Range {
	if addr-x.low >= x.len {
		return nil
	}
	lo, hi := 0, len(x.ranges)
	for lo < hi { // the first range that starts at addr or later
		mid := int(uint(lo+hi) >> 1)
		if x.ranges[mid].Start < addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo > 0 && addr < x.ranges[lo-1].End {
		return &x.ranges[lo-1]
	}
	return nil
}

// Check gives the first reason for which the thread is in the way, or nil. An
// error means that its stack could not be read: then nothing is known.
func (c *Checker) Check(t Thread) (*Blocker, error) {
	if r := c.pc.find(t.PC); r != nil {
		return &Blocker{TID: t.TID, Function: r.Name, Addr: t.PC, Where: AtPC}, nil
	}
	if t.InSyscall {
		if r := c.pc.find(t.PC - 2); r != nil {
			return &Blocker{TID: t.TID, Function: r.Name, Addr: t.PC - 2, Where: AtPC}, nil
		}
	}
	if len(c.stack.ranges) == 0 {
		return nil, nil
	}
	return c.scan(t)
}

// scan looks through the thread's stack. What is below the stack pointer (the
// red zone, x86-64 psABI 3.2.2) holds no return address.
func (c *Checker) scan(t Thread) (*Blocker, error) {
	start := t.SP &^ 7
	end := c.stackEnd(start)
	for at := start; at < end; {
		n := min(uint64(len(c.buf)), end-at)
		b := c.buf[:n]
		if err := c.mem.ReadAt(b, at); err != nil {
			return nil, err
		}
		for i := 0; i+8 <= len(b); i += 8 {
			v := binary.LittleEndian.Uint64(b[i:])
			if v-c.stack.low >= c.stack.len {
				continue
			}
			if r := c.stack.find(v); r != nil {
				return &Blocker{TID: t.TID, Function: r.Name, Addr: v, Where: OnStack, At: at + uint64(i)}, nil
			}
		}
		at += n
	}
	return nil, nil
}

// stackEnd gives the end of the mapping that holds a stack pointer. A stack that
// was mapped after maps were read ends, as far as is known, after one page: the
// caller reads maps again before every try, so that this is one of a thread that
// has just begun.
func (c *Checker) stackEnd(sp uint64) uint64 {
	i := sort.Search(len(c.maps), func(i int) bool { return c.maps[i].End > sp })
	if i < len(c.maps) && c.maps[i].Start <= sp {
		return c.maps[i].End
	}
	// The main thread's stack grows downwards: what is below its mapping when
	// maps were read belongs to it now.
	if i < len(c.maps) && c.maps[i].Path == "[stack]" {
		return c.maps[i].End
	}
	return (sp + 0x1000) &^ 0xfff
}
