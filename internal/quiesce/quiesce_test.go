package quiesce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"hotpatch/internal/procfs"
	"hotpatch/internal/unwind"
)

// memory is a process's memory, word by word; what is mapped and not set is 0.
type memory struct {
	maps  []procfs.Map
	words map[uint64]uint64
}

func (m memory) ReadAt(b []byte, addr uint64) error {
	for at := addr; at < addr+uint64(len(b)); {
		i := slices.IndexFunc(m.maps, func(p procfs.Map) bool { return p.Contains(at) && p.Perm&procfs.Read != 0 })
		if i < 0 {
			return fmt.Errorf("nothing at %#x", at)
		}
		at = m.maps[i].End
	}
	clear(b)
	for i := 0; i+8 <= len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], m.words[addr+uint64(i)])
	}
	return nil
}

// The mappings of the tests: a main stack, a thread's stack with its guard, and
// another piece of memory with stacks in it.
const (
	rw = procfs.Read | procfs.Write

	threadLow, threadTop = 0x10000, 0x20000
	fs                   = threadTop - 0x1000
	otherLow, otherTop   = 0x40000, 0x50000
	mainLow, mainTop     = 0x70000, 0x80000

	code = 0x5000 // the function, 0x100 bytes of it
)

func newMemory(words map[uint64]uint64) memory {
	return memory{words: words, maps: []procfs.Map{
		{Start: threadLow - 0x1000, End: threadLow},
		{Start: threadLow, End: threadTop, Perm: rw},
		{Start: otherLow, End: otherTop, Perm: rw},
		{Start: mainLow, End: mainTop, Perm: rw, Path: "[stack]"},
	}}
}

func newChecker(m memory) *Checker {
	function := []Range{{Start: code, End: code + 0x100, Name: "f", EndsInCall: true}}
	return New(function, function, m.maps, m)
}

// signalFrame puts what the kernel stores of an interrupted thread at an address.
func signalFrame(words map[uint64]uint64, at, sp uint64) map[uint64]uint64 {
	words[at], words[at+8], words[at+16], words[at+24] = sp, 0x9999, 0x246, 0x002b_0000_0000_0033
	return words
}

func TestCheck(t *testing.T) {
	t.Parallel()
	const inside = code + 0x20
	worker := Thread{TID: 2, PC: 0x9000, SP: threadLow + 0x8000, FS: fs}
	leader := Thread{TID: 1, Main: true, PC: 0x9000, SP: mainLow + 0x8000, FS: otherLow}
	at := func(th Thread, pc, sp uint64) Thread {
		if th.PC = pc; sp != 0 {
			th.SP = sp
		}
		return th
	}
	inRegister := func(th Thread, v uint64) Thread {
		th.Regs[14] = v
		return th
	}
	inSyscall := func(th Thread) Thread {
		th.InSyscall = true
		return th
	}
	word := func(addr, v uint64) map[uint64]uint64 { return map[uint64]uint64{addr: v} }
	crowd := make(map[uint64]uint64) // signal frames that lead further and further down
	for i := range uint64(maxSpans + 1) {
		signalFrame(crowd, otherTop-0x100-i*0x100, otherTop-0x210-i*0x100)
	}
	tests := []struct {
		name   string
		thread Thread
		words  map[uint64]uint64
		hits   []string // where and at
		err    error
	}{
		{"nowhere near", worker, nil, nil, nil},
		{"at the first byte", at(worker, code, 0), nil, nil, nil},
		{"at the second byte", at(worker, code+1, 0), nil, []string{"pc 0x0"}, nil},
		{"at the last byte", at(worker, code+0xff, 0), nil, []string{"pc 0x0"}, nil},
		{"in a system call that starts again inside", inSyscall(at(worker, code+0x100+1, 0)), nil, []string{"pc 0x0"}, nil},
		{"not in a system call there", at(worker, code+0x100+1, 0), nil, nil, nil},
		{"a worker of the kernel's", Thread{TID: 3}, nil, nil, nil},

		{"returns inside", worker, word(worker.SP, inside), []string{"stack 0x18000"}, nil},
		{"returns to the first byte", worker, word(worker.SP, code), nil, nil},
		{"returns behind the last byte, as after a call that does not return", worker, word(worker.SP, code+0x100), []string{"stack 0x18000"}, nil},
		{"returns behind that", worker, word(worker.SP, code+0x101), nil, nil},
		{"a word below the stack pointer", worker, word(worker.SP-8, inside), nil, nil},
		{"a word below an odd stack pointer", at(worker, 0x9000, worker.SP+4), word(worker.SP, inside), []string{"stack 0x18000"}, nil},
		{"the last word of its stack", worker, word(fs-8, inside), []string{"stack 0x1eff8"}, nil},
		{"above its control block", worker, word(fs+8, inside), nil, nil},
		{"the last word of the main stack", leader, word(mainTop-8, inside), []string{"stack 0x7fff8"}, nil},
		{"two words", worker, map[uint64]uint64{worker.SP + 8: inside, worker.SP + 80: inside + 1}, []string{"stack 0x18008", "stack 0x18050"}, nil},

		{"in a register", inRegister(worker, inside), nil, []string{"register 0x0"}, nil},
		{"the first byte in a register", inRegister(worker, code), nil, nil, nil},
		{"a thread without a control block", Thread{TID: 3, PC: 0x9000, SP: otherLow + 8}, word(otherTop-8, inside), []string{"stack 0x4fff8"}, nil},
		{"its control block is not mapped", Thread{TID: 3, PC: 0x9000, SP: otherLow + 8, FS: 0x900000}, nil, nil, ErrUnknownStack},

		{"on another stack, its own below", at(worker, 0x9000, otherLow+0x100), word(threadLow+8, inside), []string{"stack 0x10008"}, nil},
		{"on another stack, which counts", at(worker, 0x9000, otherLow+0x100), word(otherTop-8, inside), []string{"stack 0x4fff8"}, nil},
		{"on a stack above its own in the same mapping", at(worker, 0x9000, fs+0x800), word(threadLow+8, inside), []string{"stack 0x10008"}, nil},
		{"the leader on another stack", at(leader, 0x9000, otherLow+0x100), word(mainLow+8, inside), []string{"stack 0x70008"}, nil},

		{"in a handler on a stack that lies above on its own", at(worker, 0x9000, threadLow+0xc000),
			signalFrame(word(threadLow+0x7008, inside), threadLow+0xc100, threadLow+0x7000), []string{"stack 0x17008"}, nil},
		{"what is below the interrupted stack pointer", at(worker, 0x9000, threadLow+0xc000),
			signalFrame(word(threadLow+0x6ff8, inside), threadLow+0xc100, threadLow+0x7000), nil, nil},
		{"the leader in a handler on a stack in its frames", at(leader, 0x9000, mainLow+0xc000),
			signalFrame(word(mainLow+0x7008, inside), mainLow+0xc100, mainLow+0x7000), []string{"stack 0x77008"}, nil},
		{"a handler interrupted by another, on a third stack", at(worker, 0x9000, threadLow+0xc000),
			signalFrame(signalFrame(word(otherLow+0x7008, inside), threadLow+0x7100, otherLow+0x7000), threadLow+0xc100, threadLow+0x7000),
			[]string{"stack 0x47008"}, nil},
		{"a frame that leads into nothing", worker, signalFrame(word(worker.SP, inside), worker.SP+0x100, 0x900000), []string{"stack 0x18000"}, nil},
		{"too many stacks", at(worker, 0x9000, otherTop-0x108), crowd, nil, ErrUnknownStack},
		{"on a stack that is not known", at(worker, 0x9000, 0x900000), nil, nil, ErrUnknownStack},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, ahead := range []bool{false, true} {
				c := newChecker(newMemory(test.words))
				if ahead {
					m := &fetched{memory: newMemory(test.words), room: 1 << 20}
					c = New(c.pc.ranges, c.stack.ranges, m.maps, m)
					c.fetch(1, func(int) Thread { return test.thread })
				}
				hits, err := c.Check(test.thread, make([]Hit, 0, 8))
				if !errors.Is(err, test.err) {
					t.Fatalf("read ahead %v: error %v, want %v", ahead, err, test.err)
				}
				var got []string
				for _, h := range hits {
					got = append(got, fmt.Sprintf("%s %#x", h.Where, h.At))
				}
				if test.err == nil && !slices.Equal(got, test.hits) {
					t.Errorf("read ahead %v: hits %q, want %q", ahead, got, test.hits)
				}
			}
		})
	}
}

// fetched is memory that is read ahead: what was planned and fetched it gives, and what
// was not it reads.
type fetched struct {
	memory
	room    int
	planned [][2]uint64
	given   int // times
}

func (m *fetched) Plan(addr uint64, n int) bool {
	if n > m.room {
		return false
	}
	m.room -= n
	m.planned = append(m.planned, [2]uint64{addr, addr + uint64(n)})
	return true
}
func (m *fetched) Fetch()  {}
func (m *fetched) Forget() { m.planned = nil }

func (m *fetched) ReadAt(b []byte, addr uint64) error {
	if slices.ContainsFunc(m.planned, func(r [2]uint64) bool { return r[0] <= addr && addr+uint64(len(b)) <= r[1] }) {
		m.given++
	}
	return m.memory.ReadAt(b, addr)
}

// TestFetch: the stacks whose bounds are known are read ahead, those of as many threads
// as there is room for, and Check asks for just that.
func TestFetch(t *testing.T) {
	t.Parallel()
	threads := []Thread{
		{TID: 1, Main: true, SP: mainLow + 0x8004},
		{TID: 2, SP: threadLow + 0x8000, FS: fs},
		{TID: 3, SP: otherLow + 0x8000, FS: fs},  // where that stack ends is not known
		{TID: 4, SP: 0x900000, FS: fs},           // nor is this one
		{TID: 5, SP: threadLow + 0x6000, FS: fs}, // no room
	}
	m := &fetched{memory: newMemory(nil), room: 0x10000}
	function := []Range{{Start: code, End: code + 0x100, Name: "f"}}
	c := New(function, function, m.maps, m)
	if n := c.fetch(len(threads), func(i int) Thread { return threads[i] }); n != 4 {
		t.Errorf("stacks of %d threads are read ahead, want 4", n)
	}
	if want := [][2]uint64{{mainLow + 0x8000, mainTop}, {threadLow + 0x8000, fs}}; !slices.Equal(m.planned, want) {
		t.Errorf("%#x are read ahead, want %#x", m.planned, want)
	}
	for i, th := range threads[:2] {
		// The words of both alignments count where the stack pointer is odd.
		if _, err := c.Check(th, nil); err != nil || m.given != []int{2, 3}[i] {
			t.Errorf("thread %d: %v, and %d reads were given", th.TID, err, m.given)
		}
	}
	m.Forget()
	if m.room = 8; c.fetch(1, func(int) Thread { return threads[4] }) != 1 || len(m.planned) != 0 {
		t.Errorf("without any room, %#x are read ahead", m.planned)
	}
	if n := newChecker(newMemory(nil)).fetch(3, nil); n != 3 {
		t.Errorf("memory that cannot do it is asked for %d", n)
	}
}

// TestEndOfFunction: what begins where a function ends is pointed to from many stacks, and
// is no place to return to unless the function ends in a call.
func TestEndOfFunction(t *testing.T) {
	t.Parallel()
	worker := Thread{TID: 2, PC: 0x9000, SP: threadLow + 0x8000, FS: fs}
	m := newMemory(map[uint64]uint64{worker.SP: code + 0x100})
	for _, call := range []bool{false, true} {
		ranges := []Range{{Start: code, End: code + 0x100, EndsInCall: call}}
		hits, err := New(ranges, ranges, m.maps, m).Check(worker, make([]Hit, 0, 8))
		if err != nil || (len(hits) == 1) != call {
			t.Errorf("ends in a call: %v: %v, %v", call, hits, err)
		}
	}
}

// TestSeveralMappings: a stack of which some pages are locked, say, is one stack.
func TestSeveralMappings(t *testing.T) {
	t.Parallel()
	const inside = code + 0x20
	split := func(m memory) memory {
		m.maps = []procfs.Map{
			{Start: threadLow - 0x1000, End: threadLow},
			{Start: threadLow, End: threadLow + 0x4000, Perm: rw},
			{Start: threadLow + 0x4000, End: threadLow + 0x6000, Perm: rw | procfs.Exec},
			{Start: threadLow + 0x6000, End: threadTop, Perm: rw},
			{Start: threadTop, End: threadTop + 0x1000, Perm: procfs.Read},
			{Start: otherLow, End: otherTop, Perm: rw},
			{Start: mainLow, End: mainTop - 0x4000, Perm: rw},
			{Start: mainTop - 0x4000, End: mainTop, Perm: rw, Path: "[stack]"},
		}
		return m
	}
	for _, test := range []struct {
		name   string
		thread Thread
		at     uint64
	}{
		{"in the middle of its own", Thread{TID: 2, SP: threadLow + 0x1000, FS: fs}, threadLow + 0x5000},
		{"in the middle of its own, on another", Thread{TID: 2, SP: otherLow + 0x1000, FS: fs}, threadLow + 0x5000},
		{"at the bottom of its own, on another", Thread{TID: 2, SP: otherLow + 0x1000, FS: fs}, threadLow + 8},
		{"the main stack", Thread{TID: 1, Main: true, SP: mainLow + 0x1000}, mainTop - 8},
		{"the main stack, from another", Thread{TID: 1, Main: true, SP: otherLow + 0x1000}, mainLow + 8},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			hits, err := newChecker(split(newMemory(map[uint64]uint64{test.at: inside}))).Check(test.thread, make([]Hit, 0, 8))
			if err != nil || len(hits) != 1 || hits[0].At != test.at {
				t.Errorf("%v, %v, want one at %#x", hits, err, test.at)
			}
		})
	}
}

// TestNewThread: what looks like two mappings may be one new stack, if the thread was
// not there when they were read.
func TestNewThread(t *testing.T) {
	t.Parallel()
	c := newChecker(newMemory(nil))
	c.Known([]int{1, 2, 5})
	for _, test := range []struct {
		thread Thread
		err    error
	}{
		{Thread{TID: 2, SP: otherLow + 8, FS: fs}, nil},
		{Thread{TID: 3, SP: otherLow + 8, FS: fs}, ErrUnknownStack},
		{Thread{TID: 3, SP: threadLow + 8, FS: fs}, nil},
	} {
		if _, err := c.Check(test.thread, nil); !errors.Is(err, test.err) {
			t.Errorf("%+v: %v", test.thread, err)
		}
	}
	c.Exact()
	if _, err := c.Check(Thread{TID: 3, SP: otherLow + 8, FS: fs}, nil); err != nil {
		t.Error(err)
	}
}

// existing are the pages that there are.
type existing [][2]uint64

func (e existing) Next(at, end uint64) (from, to uint64, err error) {
	for _, r := range e {
		if r[1] > at && r[0] < end {
			return max(r[0], at), min(r[1], end), nil
		}
	}
	return end, end, nil
}

// TestSparse: what a stack has never touched is not read; what it has touched is.
func TestSparse(t *testing.T) {
	t.Parallel()
	m := newMemory(map[uint64]uint64{threadLow + 0x3008: code + 8, threadLow + 0x5008: code + 8})
	c := newChecker(m)
	c.Sparse(existing{{threadLow + 0x3000, threadLow + 0x4000}})
	hits, err := c.Check(Thread{TID: 2, SP: otherLow + 8, FS: fs}, make([]Hit, 0, 8))
	if err != nil || len(hits) != 1 || hits[0].At != threadLow+0x3008 {
		t.Errorf("on another stack: %v, %v", hits, err)
	}
	hits, err = c.Check(Thread{TID: 2, SP: threadLow + 8, FS: fs}, make([]Hit, 0, 8))
	if err != nil || len(hits) != 2 {
		t.Errorf("from the stack pointer up all is there: %v, %v", hits, err)
	}
}

// TestCheckAllocatesNothing: it runs while everything is stopped.
func TestCheckAllocatesNothing(t *testing.T) {
	sp := uint64(threadLow + 0xc000)
	words := signalFrame(map[uint64]uint64{threadLow + 0x7008: code + 8}, sp+0x100, threadLow+0x7000)
	m := newMemory(words)
	c, hits := newChecker(m), make([]Hit, 0, 8)
	n := testing.AllocsPerRun(10, func() {
		if got, err := c.Check(Thread{TID: 2, PC: code + 1, SP: sp, FS: fs}, hits[:0]); err != nil || len(got) != 2 {
			t.Errorf("%v, %v", got, err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestClear: a word that a call left behind looks like a return address. Only a
// complete walk tells that it is none.
func TestClear(t *testing.T) {
	t.Parallel()
	const sp, stale = threadLow + 0x8000, threadLow + 0x8100
	frames := func(pc, at uint64) []unwind.Frame {
		return []unwind.Frame{
			{PC: 0x9000, Exact: true, SP: sp, CFA: sp + 0x200},
			{PC: pc, SP: sp + 0x200, CFA: sp + 0x400, At: at},
			{PC: 0x9200, SP: sp + 0x400, CFA: 0, At: sp + 0x3f8},
		}
	}
	real, other := frames(code+0x20, sp+0x1f8), frames(0x9100, sp+0x1f8)
	interrupted := frames(code+1, 0)
	interrupted[1].Exact = true
	tests := []struct {
		name  string
		words map[uint64]uint64
		walk  unwind.Walk
		left  int
	}{
		{"stale, complete walk", map[uint64]uint64{stale: code + 0x20}, unwind.Walk{Frames: other, Complete: true}, 0},
		{"stale, incomplete walk", map[uint64]uint64{stale: code + 0x20}, unwind.Walk{Frames: other}, 1},
		{"a frame", map[uint64]uint64{sp + 0x1f8: code + 0x20}, unwind.Walk{Frames: real, Complete: true}, 1},
		{"a frame and a stale word", map[uint64]uint64{stale: code + 0x20, sp + 0x1f8: code + 0x20}, unwind.Walk{Frames: real, Complete: true}, 1},
		{"behind the last frame", map[uint64]uint64{sp + 0x500: code + 0x20}, unwind.Walk{Frames: other, Complete: true}, 1},
		{"a frame that a signal has interrupted", map[uint64]uint64{stale: code + 0x20}, unwind.Walk{Frames: interrupted, Complete: true}, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newChecker(newMemory(test.words))
			hits, err := c.Check(Thread{TID: 2, PC: 0x9000, SP: sp, FS: fs}, make([]Hit, 0, 8))
			if err != nil || len(hits) != len(test.words) {
				t.Fatalf("the words alone give %v, %v", hits, err)
			}
			if left := c.Clear(hits, &test.walk); len(left) != test.left {
				t.Errorf("left is %v, want %d", left, test.left)
			}
		})
	}
}

// TestJudged: what a search of the rest of memory may leave out.
func TestJudged(t *testing.T) {
	t.Parallel()
	m := newMemory(nil)
	unguarded := m
	unguarded.maps = m.maps[1:]
	merged := m
	merged.maps = slices.Clone(m.maps)
	merged.maps[1].End += 0x10000 // something else is mapped directly above
	worker := Thread{TID: 2, SP: threadLow + 0x8000, FS: fs}
	tests := []struct {
		name   string
		m      memory
		thread Thread
		in     []uint64
		out    []uint64
	}{
		{"own stack", m, worker, []uint64{threadLow, worker.SP, fs - 8}, []uint64{fs, otherLow, mainLow}},
		{"own stack, bounds unknown", unguarded, worker, []uint64{worker.SP, fs - 8}, []uint64{threadLow, worker.SP - 8, fs}},
		{"something above", merged, worker, []uint64{worker.SP, fs - 8}, []uint64{fs, threadTop}},
		{"another stack", m, Thread{TID: 2, SP: otherLow + 0x100, FS: fs}, []uint64{threadLow, otherLow + 0x100, otherTop - 8}, []uint64{otherLow, otherLow + 0xf8}},
		{"main stack", m, Thread{TID: 1, Main: true, SP: mainLow + 0x100}, []uint64{mainLow, mainTop - 8}, []uint64{otherLow}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ranges := newChecker(test.m).Judged(test.thread, nil)
			judged := func(addr uint64) bool {
				return slices.ContainsFunc(ranges, func(r [2]uint64) bool { return r[0] <= addr && addr < r[1] })
			}
			for _, addr := range test.in {
				if !judged(addr) {
					t.Errorf("%#x is not judged: %#x", addr, ranges)
				}
			}
			for _, addr := range test.out {
				if judged(addr) {
					t.Errorf("%#x is judged: %#x", addr, ranges)
				}
			}
		})
	}
}
