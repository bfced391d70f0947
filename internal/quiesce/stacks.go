package quiesce

import (
	"encoding/binary"
	"errors"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"hotpatch/internal/procfs"
)

// ErrUnknownStack says that a stack was mapped after the mappings were read: that
// of a thread that has just begun. Read them again and try again.
var ErrUnknownStack = errors.New("a thread has begun on a stack that was not mapped before")

// run is a sequence of mappings without gaps between them: a stack of which a part
// is locked, protected, or advised upon otherwise is several mappings.
type run struct {
	start, end uint64
	main       bool // it has the stack of the main thread
	anonymous  bool // private memory without a file: pages that do not exist are zeros
}

// runsOf joins mappings that can be one stack: a stack is written to.
func runsOf(maps []procfs.Map) []run {
	runs := make([]run, 0, len(maps))
	joins := false
	for i := range maps {
		m := &maps[i]
		writable := m.Perm&procfs.Write != 0
		anonymous := m.Inode == 0 && m.Perm&procfs.Shared == 0
		if n := len(runs) - 1; joins && writable && runs[n].end == m.Start {
			runs[n].end = m.End
			runs[n].anonymous = runs[n].anonymous && anonymous
		} else {
			runs = append(runs, run{start: m.Start, end: m.End, anonymous: anonymous})
		}
		if m.Path == "[stack]" {
			runs[len(runs)-1].main = true
		}
		joins = writable
	}
	return runs
}

// home finds the mappings of the thread's own stack: "[stack]" for the main
// thread; for others those that hold the thread control block, which both C
// libraries put on top of the stack that they make.
func (c *Checker) home(t Thread) (run, bool) {
	if !t.Main {
		return c.find(t.FS)
	}
	for _, r := range c.runs {
		if r.main {
			return r, true
		}
	}
	return run{}, false
}

// find finds the mappings around an address. The main stack may have grown
// downwards since they were read.
func (c *Checker) find(addr uint64) (run, bool) {
	if c.last < len(c.runs) { // a thread's stack pointer and control block are near each other
		if r := c.runs[c.last]; r.start <= addr && addr < r.end {
			return r, true
		}
	}
	i := sort.Search(len(c.runs), func(i int) bool { return c.runs[i].end > addr })
	if i == len(c.runs) || c.runs[i].start > addr && !c.runs[i].main {
		return run{}, false
	}
	c.last = i
	return c.runs[i], true
}

// stranger reports whether the mappings cannot be trusted to be those of a thread's
// stack: it has none, or the thread has begun since they were read, so that what
// looks like several mappings may be one new stack.
func (c *Checker) stranger(t Thread, current run) bool {
	if c.exact || t.Main || t.FS == 0 {
		return false
	}
	home, ok := c.home(t)
	if !ok {
		return true
	}
	if home.start == current.start || c.tids == nil {
		return false
	}
	_, known := slices.BinarySearch(c.tids, t.TID)
	return !known
}

// span is a part of a stack that is scanned.
type span struct {
	start, end uint64
	extent     extent
}

// extent says how much of a span is known to be in use, so that its pages exist.
type extent uint8

const (
	inUse   extent = iota // all: from a stack pointer to where the frames begin
	begins                // its beginning: from a stack pointer to the end of the mappings
	nothing               // a whole stack
)

// maxSpans is how many stacks one thread may be on at once: its own, and those that
// it left for others without returning.
const maxSpans = 16

// scan looks through the thread's stack, from the stack pointer upwards. What is
// below the stack pointer (the red zone, x86-64 psABI 3.2.2) holds no return
// address.
//
// A thread that runs on another stack than its own, in a signal handler
// (sigaltstack(2)) or a coroutine, has one of its own too, all of which counts:
// where its frames begin there is not known. The other stack may lie anywhere, in
// the same mapping as its own or on it. So where a signal frame is found, the stack
// that the signal has interrupted is looked through as well.
func (c *Checker) scan(t Thread, hits []Hit) (_ []Hit, err error) {
	c.spans = c.spans[:0]
	current, ok := c.find(t.SP)
	if !ok || c.stranger(t, current) || !c.add(t, t.SP) {
		return hits, ErrUnknownStack
	}
	switch home, ok := c.home(t); {
	case ok && home.start != current.start:
		c.spans = append(c.spans, span{home.start, home.end, nothing})
	case ok && !t.Main && t.SP >= t.FS:
		c.spans = append(c.spans, span{home.start, t.SP &^ 7, nothing})
	}
	for i := 0; i < len(c.spans); i++ { // add makes them more
		if hits, err = c.scanRange(t, c.spans[i], hits); err != nil {
			return hits, err
		}
	}
	return hits, nil
}

// add adds the stack from a stack pointer upwards to what is scanned, as far as it
// is not there already. It gives false if nothing was mapped there, or if there
// are too many.
//
// Where the stack pointer is not a multiple of 8, as hand-written code may have it,
// the words of both alignments count.
func (c *Checker) add(t Thread, sp uint64) bool {
	return c.addAligned(t, sp&^7) && (sp%8 == 0 || c.addAligned(t, sp))
}

func (c *Checker) addAligned(t Thread, sp uint64) bool {
	r, ok := c.find(sp)
	if !ok {
		return false
	}
	s := span{sp, r.end, begins}
	switch {
	case r.main:
		s.extent = inUse
	case !t.Main && sp < t.FS && t.FS < r.end:
		s.extent = inUse
		s.end = t.FS &^ 7 // the thread control block is on top of the thread's own stack
	}
	for _, have := range c.spans {
		switch {
		case have.start%8 != sp%8:
		case have.start <= sp && sp < have.end:
			return true
		case sp < have.start && have.start < s.end:
			s.end = have.start
		}
	}
	if len(c.spans) == cap(c.spans) {
		return false
	}
	c.spans = append(c.spans, s)
	return true
}

// Judged gives the ranges of memory on which Check has decided for a thread: what
// it runs on, and its own stack, all of it if its bounds are known (what lies
// below the stack pointer is left over from calls that have returned).
func (c *Checker) Judged(t Thread, ranges [][2]uint64) [][2]uint64 {
	if t.Main {
		if r, ok := c.home(t); ok {
			ranges = append(ranges, [2]uint64{r.start, r.end})
		}
	} else if m, ok := c.mapping(t.FS); ok && c.guarded(m) && m.End-t.FS <= controlBlock {
		ranges = append(ranges, [2]uint64{m.Start, t.FS})
	}
	if r, ok := c.find(t.SP); ok {
		end := r.end
		if !t.Main && t.SP < t.FS && t.FS < end {
			end = t.FS
		}
		ranges = append(ranges, [2]uint64{t.SP &^ 7, end})
	}
	return ranges
}

// controlBlock is more than the thread control block of any C library and what
// may lie above it on a stack that the library has mapped.
const controlBlock = 64 << 10

// mapping finds the one mapping that holds an address.
func (c *Checker) mapping(addr uint64) (procfs.Map, bool) {
	i := sort.Search(len(c.maps), func(i int) bool { return c.maps[i].End > addr })
	if i == len(c.maps) || c.maps[i].Start > addr {
		return procfs.Map{}, false
	}
	return c.maps[i], true
}

// guarded reports whether pages that cannot be touched lie directly below a
// mapping, as below each stack that a C library maps.
func (c *Checker) guarded(m procfs.Map) bool {
	i := sort.Search(len(c.maps), func(i int) bool { return c.maps[i].Start >= m.Start })
	return i > 0 && c.maps[i-1].End == m.Start && c.maps[i-1].Perm&(procfs.Read|procfs.Write|procfs.Exec) == 0
}

// scanRange compares every aligned word of a span with the ranges, and follows
// signal frames.
func (c *Checker) scanRange(t Thread, s span, hits []Hit) ([]Hit, error) {
	low, reach := c.stack.low, c.stack.len
	r, _ := c.find(s.start)
	for at := s.start; at < s.end; {
		to := s.end
		if c.pages != nil && r.anonymous && (s.extent == nothing || s.extent == begins && at > s.start) {
			var err error
			if at, to, err = c.pages.Next(at, s.end); err != nil || at == to {
				return hits, err
			}
		}
		n := min(uint64(len(c.buf)), to-at)
		b := c.buf[:n]
		if err := c.read(b, at); err != nil {
			return hits, err
		}
		for i := 0; i+8 <= len(b); i += 8 {
			if i%64 == 0 { // nearly all words are nothing
				if i += skip(b[i:], low, reach); i+8 > len(b) {
					break
				}
			}
			v := binary.LittleEndian.Uint64(b[i:])
			if v&selectors == userCode {
				if err := c.follow(t, at+uint64(i), b[:i]); err != nil {
					return hits, err
				}
			}
			if v-low >= reach {
				continue
			}
			if r := c.stack.find(v); r != nil && len(hits) < cap(hits) {
				hits = append(hits, Hit{Range: r, Addr: v, Where: OnStack, At: at + uint64(i)})
			}
		}
		at += n
	}
	return hits, nil
}

// read reads a part of a stack. Pages that not even the kernel can read hold no frame
// and count as zeros, such as the guard pages that MADV_GUARD_INSTALL (madvise(2))
// makes within the mapping of a stack.
func (c *Checker) read(b []byte, at uint64) error {
	err := c.mem.ReadAt(b, at)
	if err == nil || !unreadable(err) {
		return err
	}
	for len(b) > 0 {
		n := min(uint64(len(b)), pageSize-at%pageSize)
		if err := c.mem.ReadAt(b[:n], at); err != nil {
			if !unreadable(err) {
				return err
			}
			clear(b[:n])
		}
		b, at = b[n:], at+n
	}
	return nil
}

const pageSize = 4096

func unreadable(err error) bool { return errors.Is(err, unix.EIO) || errors.Is(err, unix.EFAULT) }

// In a signal frame the kernel stores, in ascending order, rsp, rip, eflags, and a
// word of the segment selectors cs, gs, fs and ss (struct sigcontext_64,
// arch/x86/include/uapi/asm/sigcontext.h). gs and fs are 0; cs is 0x33, or 0xe033
// under Xen; ss is 0 before Linux 4.6.
const (
	selectors = 0x0000_ffff_ffff_0fff
	userCode  = 0x0033
)

// follow adds the stack that a signal has interrupted, if the selectors at an
// address are those of a signal frame. below is what is known of the memory in front
// of it.
func (c *Checker) follow(t Thread, at uint64, below []byte) error {
	frame := c.frame[:]
	if n := len(below); n >= len(frame) {
		copy(frame, below[n-len(frame):])
	} else if c.mem.ReadAt(frame, at-uint64(len(frame))) != nil {
		return nil // it begins where nothing is mapped
	}
	// Bit 1 of eflags is always set, interrupts are on, and there are no bits
	// above 21 (Intel SDM, volume 1, 3.4.3).
	const always, none = 0x202, ^uint64(1<<22 - 1)
	sp, flags := binary.LittleEndian.Uint64(frame), binary.LittleEndian.Uint64(frame[16:])
	if flags&always != always || flags&none != 0 || c.add(t, sp) {
		return nil
	}
	if len(c.spans) < cap(c.spans) && c.mem.ReadAt(frame[:8], sp&^7) != nil {
		return nil // nothing is there: the words are left over from a stack that is gone
	}
	return ErrUnknownStack
}
