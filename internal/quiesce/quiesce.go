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
	"fmt"
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
	// Main says that it is the process's main thread; FS is its thread pointer.
	// They tell where its own stack is, when it runs on another one.
	Main bool
	FS   uint64
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

// scan looks through the thread's stack, from the stack pointer to the end of its
// mapping. What is below the stack pointer (the red zone, x86-64 psABI 3.2.2)
// holds no return address. A thread that runs on another stack than its own, in a
// signal handler (sigaltstack(2)) or a coroutine, has one of its own too, all of
// which counts: where its frames begin there is not known.
func (c *Checker) scan(t Thread) (*Blocker, error) {
	start := t.SP &^ 7
	current, known := c.mapping(start)
	if !known {
		// Mapped since maps were read: the stack of a thread that has just
		// begun. It ends where memory ends.
		return c.scanRange(t.TID, start, start+maxUnknown, true)
	}
	if b, err := c.scanRange(t.TID, start, current.End, false); b != nil || err != nil {
		return b, err
	}
	home, known := c.home(t)
	if !known || home.Start == current.Start {
		return nil, nil
	}
	return c.scanRange(t.TID, home.Start, home.End, false)
}

// maxUnknown is how far a stack is followed whose mapping is not known.
const maxUnknown = 64 << 20

// home finds the mapping of the thread's own stack: "[stack]" for the main
// thread; for others the one that holds the thread control block, which both C
// libraries put on top of the stack that they make.
func (c *Checker) home(t Thread) (procfs.Map, bool) {
	if !t.Main {
		return c.mapping(t.FS)
	}
	for _, m := range c.maps {
		if m.Path == "[stack]" {
			return m, true
		}
	}
	return procfs.Map{}, false
}

// mapping finds the mapping that holds an address. The main stack may have grown
// downwards since maps were read.
func (c *Checker) mapping(addr uint64) (procfs.Map, bool) {
	i := sort.Search(len(c.maps), func(i int) bool { return c.maps[i].End > addr })
	if i == len(c.maps) || c.maps[i].Start > addr && c.maps[i].Path != "[stack]" {
		return procfs.Map{}, false
	}
	return c.maps[i], true
}

// scanRange compares every aligned word of [start, end) with the ranges. With
// open set, the end of readable memory is the end.
func (c *Checker) scanRange(tid int, start, end uint64, open bool) (*Blocker, error) {
	for at := start; at < end; {
		n := min(uint64(len(c.buf)), end-at)
		if open {
			n = min(n, 0x1000-at&0xfff) // page by page
		}
		b := c.buf[:n]
		if err := c.mem.ReadAt(b, at); err != nil {
			if open && at > start {
				return nil, nil
			}
			return nil, err
		}
		for i := 0; i+8 <= len(b); i += 8 {
			v := binary.LittleEndian.Uint64(b[i:])
			if v-c.stack.low >= c.stack.len {
				continue
			}
			if r := c.stack.find(v); r != nil {
				return &Blocker{TID: tid, Function: r.Name, Addr: v, Where: OnStack, At: at + uint64(i)}, nil
			}
		}
		at += n
	}
	if open {
		return nil, fmt.Errorf("the stack of thread %d does not end within %d bytes", tid, maxUnknown)
	}
	return nil, nil
}
