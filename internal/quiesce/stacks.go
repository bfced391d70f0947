package quiesce

import (
	"encoding/binary"
	"errors"
	"sort"

	"hotpatch/internal/procfs"
)

// ErrUnknownStack says that a stack was mapped after the mappings were read: that
// of a thread that has just begun. Read them again and try again.
var ErrUnknownStack = errors.New("a thread has begun on a stack that was not mapped before")

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
	if c.last < len(c.maps) { // a thread's stack pointer and control block are near each other
		if m := &c.maps[c.last]; m.Start <= addr && addr < m.End {
			return *m, true
		}
	}
	i := sort.Search(len(c.maps), func(i int) bool { return c.maps[i].End > addr })
	if i == len(c.maps) || c.maps[i].Start > addr && c.maps[i].Path != "[stack]" {
		return procfs.Map{}, false
	}
	c.last = i
	return c.maps[i], true
}

// span is a part of a stack that is scanned.
type span struct{ start, end uint64 }

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
	if !c.add(t, t.SP) {
		return hits, ErrUnknownStack
	}
	current, _ := c.mapping(t.SP)
	switch home, ok := c.home(t); {
	case ok && home.Start != current.Start:
		c.spans = append(c.spans, span{home.Start, home.End})
	case ok && !t.Main && t.SP >= t.FS:
		c.spans = append(c.spans, span{home.Start, t.SP &^ 7})
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
func (c *Checker) add(t Thread, sp uint64) bool {
	sp &^= 7
	m, ok := c.mapping(sp)
	if !ok {
		return false
	}
	s := span{sp, m.End}
	if !t.Main && sp < t.FS && t.FS < m.End {
		s.end = t.FS &^ 7 // the thread control block is on top of the thread's own stack
	}
	for _, have := range c.spans {
		if have.start <= sp && sp < have.end {
			return true
		}
		if sp < have.start && have.start < s.end {
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
	if m, ok := c.home(t); ok {
		switch {
		case t.Main:
			ranges = append(ranges, [2]uint64{m.Start, m.End})
		case c.guarded(m) && m.End-t.FS <= controlBlock:
			ranges = append(ranges, [2]uint64{m.Start, t.FS})
		}
	}
	if m, ok := c.mapping(t.SP); ok {
		end := m.End
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
	for at := s.start; at < s.end; {
		n := min(uint64(len(c.buf)), s.end-at)
		b := c.buf[:n]
		if err := c.mem.ReadAt(b, at); err != nil {
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
