// Package quiesce finds out who stands in the way of an edit: which stopped
// threads have an address in their registers or on their stacks that must not be
// there while code is being overwritten.
//
// It is sound before it is precise: every register, and every aligned word of a
// stack, from the stack pointer to the end of its mappings, counts as a return
// address. A word that only looks like one makes a thread wait in vain; no real one
// is missed.
// What it cannot see are stacks that are nobody's current stack, such as those
// of suspended coroutines.
//
// Check is meant for the pause: it reads no file and allocates nothing; hits are
// appended as far as there is capacity.
package quiesce

import (
	"sort"

	"hotpatch/internal/procfs"
)

// Range is a piece of code. Its interior, every address but the first one and
// the one behind the last, must be free: who is at the first byte runs whatever
// stands there afterwards.
type Range struct {
	Start, End uint64
	Name       string // of the function, for messages
	// EndsInCall says that this is all of a function, and that a call may be its last
	// instruction, which never returns, so that End counts as inside for return addresses.
	// (Who returns behind bytes that are merely overwritten does no harm.)
	EndsInCall bool
}

func (r *Range) has(addr uint64, returns bool) bool {
	return r.Start < addr && (addr < r.End || returns && r.EndsInCall && addr == r.End)
}

// Where says in which place of a thread an address was found.
type Where string

// The places.
const (
	AtPC       Where = "pc"       // the thread is about to execute there
	InRegister Where = "register" // the thread may be about to return or jump there
	OnStack    Where = "stack"    // the thread returns there
	InMemory   Where = "memory"   // a word elsewhere: a stack that is nobody's current one
)

// Hit is an address that must not be there.
type Hit struct {
	Range *Range
	Addr  uint64 // the address
	Where Where
	At    uint64 // where on the stack it stands
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
	// Regs are the other general registers. longjmp, vfork, and hand-written leaves
	// have the only copy of a return address there for some instructions.
	Regs [15]uint64
}

// Checker compares threads with ranges.
type Checker struct {
	pc, stack index
	maps      []procfs.Map
	runs      []run
	last      int   // of runs: where the last address was found
	tids      []int // threads that were there when maps were read, ascending; nil: all
	exact     bool  // maps are those of this very moment
	mem       procfs.Memory
	ahead     ahead // mem, if it can do that
	pages     Pages // nil: all are read
	buf       []byte
	spans     []span   // of the thread that is being looked at
	frame     [24]byte // of a signal
}

// Pages tells which pages of private anonymous memory exist; ptrace.Pages does.
type Pages interface {
	Next(at, end uint64) (from, to uint64, err error)
}

// Sparse says that pages which do not exist are not to be read, where a stack may have
// such ones.
func (c *Checker) Sparse(p Pages) { c.pages = p }

// New prepares a check. pc are the ranges in which no thread may be; stack are
// those to which no thread may return. maps are the mappings of the process, from before the
// pause, in ascending order.
func New(pc, stack []Range, maps []procfs.Map, mem procfs.Memory) *Checker {
	c := &Checker{pc: newIndex(pc, false), stack: newIndex(stack, true), maps: maps, runs: runsOf(maps), mem: mem, buf: scratch(), spans: make([]span, 0, maxSpans)}
	c.ahead, _ = mem.(ahead)
	return c
}

// scratch makes the buffer for parts of stacks. As much of it as a usual stack needs is
// in memory afterwards: a page that is written for the first time in the pause costs as
// much as a system call.
func scratch() []byte {
	const usual = 16 << 10
	b := make([]byte, 64<<10)
	for i := 0; i < usual; i += pageSize {
		b[i] = 1
	}
	return b
}

// Known says which threads there were before the mappings were read, in ascending order. Of any
// other thread, less is taken for granted: see ErrUnknownStack.
func (c *Checker) Known(tids []int) { c.tids = tids }

// Exact says that the mappings were read in the pause.
func (c *Checker) Exact() { c.exact = true }

// index finds the range that has an address inside.
type index struct {
	ranges   []Range  // by Start
	reach    []uint64 // the highest End of the ranges up to there
	returns  bool     // it is return addresses that are looked for
	low, len uint64   // all interiors lie in [low, low+len)
}

func newIndex(ranges []Range, returns bool) index {
	x := index{ranges: append([]Range(nil), ranges...), returns: returns}
	sort.Slice(x.ranges, func(i, j int) bool { return x.ranges[i].Start < x.ranges[j].Start })
	if n := len(x.ranges); n > 0 {
		x.low = x.ranges[0].Start
		x.reach = make([]uint64, n)
		reach := uint64(0)
		for i, r := range x.ranges {
			reach = max(reach, r.End)
			x.reach[i] = reach
		}
		x.len = reach - x.low + 1
	}
	return x
}

// find gives a range whose interior has addr, or nil. Ranges may overlap: the
// overwritten bytes of a function lie in its body.
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
	for i := lo - 1; i >= 0 && x.reach[i] >= addr; i-- {
		if x.ranges[i].has(addr, x.returns) {
			return &x.ranges[i]
		}
	}
	return nil
}

// Check appends what it finds of a thread to hits: at most one place where the
// thread is, and every place where it returns, or seems to. An error means that
// a stack could not be read: then nothing is known.
func (c *Checker) Check(t Thread, hits []Hit) ([]Hit, error) {
	if t.PC == 0 && t.SP == 0 {
		// A worker of the kernel's among the threads, such as io_uring's, that
		// never returns to user space (copy_thread, arch/x86/kernel/process.c).
		return hits, nil
	}
	hits = c.checkPC(t, hits)
	if len(c.stack.ranges) == 0 {
		return hits, nil
	}
	for _, v := range t.Regs {
		if r := c.stack.find(v); r != nil && len(hits) < cap(hits) {
			hits = append(hits, Hit{Range: r, Addr: v, Where: InRegister})
		}
	}
	return c.scan(t, hits)
}

// checkPC looks at where the thread is.
func (c *Checker) checkPC(t Thread, hits []Hit) []Hit {
	if r := c.pc.find(t.PC); r != nil {
		return append(hits, Hit{Range: r, Addr: t.PC, Where: AtPC})
	}
	if t.InSyscall {
		if r := c.pc.find(t.PC - 2); r != nil {
			return append(hits, Hit{Range: r, Addr: t.PC - 2, Where: AtPC})
		}
	}
	return hits
}

// At gives the range in which a thread at that address is, or nil.
func (c *Checker) At(addr uint64) *Range { return c.pc.find(addr) }

// Inside gives the range that has an address inside as a return address, or nil.
func (c *Checker) Inside(addr uint64) *Range { return c.stack.find(addr) }
