package unwind

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"slices"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
)

// Regs are the registers of a stopped thread in 64-bit code.
type Regs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP                                    uint64
}

// How says by which means the caller of a frame was found.
type How string

// The means.
const (
	ByCFI       How = "cfi"       // call frame information
	ByPLT       How = "plt"       // the same, of a procedure linkage table
	ByVDSO      How = "vdso"      // the same, of the vDSO
	BySignal    How = "signal"    // a signal trampoline with call frame information
	BySigreturn How = "sigreturn" // a signal trampoline, known by its instructions
	ByStub      How = "stub"      // code that Unwinder.Stub knows
	ByMark      How = "outermost" // none: call frame information says that there is no caller
	ByEntry     How = "entry"     // none: the entry point of the program or the dynamic linker
	ByExit      How = "exit"      // none: the code ends the thread
	Unknown     How = "unknown"   // not found
)

// Frame is one function that a thread is in. Frames of inlined functions are not
// told apart from the functions that they are part of.
type Frame struct {
	PC uint64 // where the thread is, or will return to

	// Exact says that PC is the next instruction to be executed there: in the
	// innermost frame, and in one that a signal has interrupted. Else PC is a
	// return address, and the call is in front of it.
	Exact  bool
	Signal bool // a signal has interrupted the thread here

	SP  uint64 // the stack pointer at PC, behind the arguments of the call
	CFA uint64 // the stack pointer after the frame's return; 0 if not known
	At  uint64 // where on the stack PC stands; 0 if it came from a register or a signal frame

	Module *elfsym.Module // nil if PC is in none
	How    How            // how this frame's caller was found

	// Set by Describe.
	Function string // demangled; "" if no symbol covers PC
	Offset   uint64 // of PC from the function's entry
}

// Lookup gives the address by which the frame's function is to be looked up: PC,
// or the call in front of it. A call can be the last instruction of a function
// that does not return.
func (f *Frame) Lookup() uint64 {
	if f.Exact {
		return f.PC
	}
	return f.PC - 1
}

// Walk is the call frames of one thread, the innermost first. It has at least
// one.
type Walk struct {
	Frames   []Frame
	Complete bool   // the last frame is marked as the outermost one
	Why      string // why the walk ended, if it is not complete
}

// Covers reports whether the word of memory at an address lies on the stack
// between the frames of the walk. For such words a complete walk knows which
// ones are return addresses: those of Frame.At.
func (w *Walk) Covers(addr uint64) bool {
	for i := range w.Frames {
		if f := &w.Frames[i]; f.SP <= addr && addr < f.CFA {
			return true
		}
	}
	return false
}

// Returns reports whether the word of memory at an address is the return address of one of
// the frames.
func (w *Walk) Returns(addr uint64) bool {
	for i := range w.Frames {
		if w.Frames[i].At == addr && addr != 0 {
			return true
		}
	}
	return false
}

// Unwinder walks the stacks of one process. It is not safe for concurrent use.
type Unwinder struct {
	// DebugImage gives the separate debug file that is proven to belong to a
	// module, or nil. Prepare asks it for .debug_frame. It may be nil itself.
	DebugImage func(*elfsym.Module) *elfsym.Image

	// Stub tells of code outside of all modules, and of code without unwind
	// information in them: it reports whether a thread about to execute at pc
	// finds its return address on top of its stack and all other registers as
	// its caller left them, as in an island's jump. It must not allocate. It may
	// be nil.
	Stub func(pc uint64) bool

	space  *elfsym.Space
	mem    pages
	layout layout
	codes  []*code // prepared modules, in ascending order of addresses
	m      machine
	e      evaluator

	// What was found out about code. It is kept until SetMaps.
	known      [512]known
	returnable [512]uint64 // return addresses that were checked
	raises     [8]raise
}

// code is the unwind information of one module.
type code struct {
	module  *elfsym.Module
	lo, hi  uint64   // runtime addresses between which its segments lie
	tables  []*table // in the order in which they are asked
	entries []uint64 // see entryReturns
	plt     []elfsym.Section
	stale   bool // it is not what is mapped there now
}

// New makes an unwinder for a process. It parses nothing yet. mem must be the
// memory of that process.
func New(space *elfsym.Space, mem procfs.Memory) *Unwinder {
	return &Unwinder{space: space, mem: pages{mem: mem}, layout: layout{space.Maps}}
}

// Prepare reads the unwind information of modules, of all modules of the space
// if none is named. It is meant to be called while the process runs: a table of
// 100,000 records takes some 20 ms. A module that was prepared before is not
// read again.
//
// The result tells of modules without usable information: "no-unwind-tables",
// "damaged-unwind-tables". They are no obstacle by themselves: walks that need
// them end there as incomplete.
func (u *Unwinder) Prepare(modules ...*elfsym.Module) fault.List {
	if len(modules) == 0 {
		modules = u.space.Modules
	}
	var list fault.List
	for _, m := range modules {
		if m.Image == nil || slices.ContainsFunc(u.codes, func(c *code) bool { return c.module == m }) {
			continue
		}
		c, problem := u.prepare(m)
		if problem != nil {
			list = append(list, problem)
		}
		u.codes = append(u.codes, c)
	}
	slices.SortFunc(u.codes, func(a, b *code) int { return cmp.Compare(a.lo, b.lo) })
	u.forget()
	return list
}

func (u *Unwinder) prepare(m *elfsym.Module) (*code, *fault.Error) {
	c := &code{module: m, lo: m.Lo, hi: m.Hi, entries: entryReturns(m.Image)}
	for _, s := range m.Image.Sections() {
		if s.Name == ".plt" || s.Name == ".plt.sec" || s.Name == ".plt.got" {
			c.plt = append(c.plt, s)
		}
	}
	var errs []error
	add := func(t *table, err error) {
		switch {
		case err == nil && len(t.fdes) > 0:
			c.tables = append(c.tables, t)
		case err != nil && err != errNone:
			errs = append(errs, err)
		}
	}
	add(ehTable(m.Image))
	add(debugTable(m.Image, m.Image))
	if u.DebugImage != nil {
		if im := u.DebugImage(m); im != nil {
			add(debugTable(im, m.Image))
		}
	}
	if len(errs) == 0 && len(c.tables) > 0 {
		return c, nil
	}
	e := &fault.Error{
		Kind: fault.Unfit, Code: "no-unwind-tables", What: "cannot walk through the frames of a module", Where: m.Name,
		Why: "it has neither .eh_frame nor .debug_frame", Hint: "install its debug symbols",
	}
	if len(errs) > 0 {
		e.Code, e.Why, e.Err = "damaged-unwind-tables", "its unwind information is damaged", errors.Join(errs...)
	}
	return c, e
}

// SetMaps tells what is mapped now. It should be called shortly before the
// threads are stopped: stacks and modules come and go. Modules that were
// prepared and are not mapped any more as they were count as unknown.
func (u *Unwinder) SetMaps(maps []procfs.Map) {
	u.layout.maps = maps
	u.forget()
	for _, c := range u.codes {
		c.stale = !u.layout.stillThere(c.module)
	}
}

// forget drops what was found out about code.
func (u *Unwinder) forget() {
	clear(u.known[:])
	clear(u.returnable[:])
	clear(u.raises[:])
}

// stillThere reports whether all executable mappings of a module are as they
// were when it was found.
func (l layout) stillThere(m *elfsym.Module) bool {
	for _, old := range m.Maps {
		if old.Perm&procfs.Exec == 0 {
			continue
		}
		for addr := old.Start; addr < old.End; {
			i := l.at(addr)
			if i < 0 {
				return false
			}
			now := &l.maps[i]
			if now.Perm&procfs.Exec == 0 || now.Inode != old.Inode || now.DevMajor != old.DevMajor || now.DevMinor != old.DevMinor ||
				now.Inode != 0 && now.Offset+(addr-now.Start) != old.Offset+(addr-old.Start) {
				return false
			}
			addr = now.End
		}
	}
	return true
}

// codeAt gives the prepared module that holds a runtime address in an executable
// segment, or nil.
func (u *Unwinder) codeAt(addr uint64) *code {
	lo, hi := 0, len(u.codes)
	for lo < hi { // the first one that begins above
		mid := int(uint(lo+hi) >> 1)
		if u.codes[mid].lo <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	// A module may lie in a hole of another one.
	for i := lo - 1; i >= 0; i-- {
		if c := u.codes[i]; addr < c.hi && c.module.InText(addr) {
			return c
		}
	}
	return nil
}

// inPLT reports whether a link-time address is in a procedure linkage table.
func (c *code) inPLT(vaddr uint64) bool {
	for _, s := range c.plt {
		if s.Flags&elf.SHF_EXECINSTR != 0 && s.Contains(vaddr) {
			return true
		}
	}
	return false
}

// maxSteps bounds the call frame instructions of one walk.
const maxSteps = 1 << 22

// Walk finds the call frames of a thread, limit at most. Precondition: the
// thread is stopped, or at least blocked, and nobody else writes its stack; the
// modules that matter are prepared.
//
// It reads no file, parses nothing, and allocates nothing but its result.
func (u *Unwinder) Walk(r Regs, limit int) Walk {
	u.mem.empty()
	u.m.steps = maxSteps
	w := Walk{Frames: make([]Frame, 0, max(1, min(limit, 64)))}
	s := newState(r)
	f := Frame{PC: r.RIP, Exact: true, SP: r.RSP}
	for {
		next, caller, end := u.step(&s, &f)
		if end.why != "" {
			f.How = Unknown
		}
		w.Frames = append(w.Frames, f)
		if end.why != "" || end.complete {
			w.Complete = end.complete
			if !w.Complete {
				w.Why = fmt.Sprintf("frame %d at %#x: %s", len(w.Frames)-1, f.PC, end.why)
			}
			return w
		}
		if len(w.Frames) >= limit {
			w.Why = fmt.Sprintf("it has more than %d frames", limit)
			return w
		}
		s, f = next, caller
	}
}

// Describe fills in the functions of the frames, from the symbols of their
// modules. It reads files; it is meant to be called after the threads run again.
func (u *Unwinder) Describe(w *Walk) {
	for i := range w.Frames {
		f := &w.Frames[i]
		if f.Module == nil {
			continue
		}
		at := f.Lookup()
		if sym, off, ok := u.space.FuncAt(at); ok {
			f.Function, f.Offset = sym.Demangled(), off+(f.PC-at)
		}
	}
}
