package ptrace

import (
	"golang.org/x/sys/unix"
)

// ahead are ranges of memory that are read with one system call, for the reads that
// follow.
type ahead struct {
	buf    []byte
	local  unix.Iovec
	remote []unix.RemoteIovec
	begins []int // where each of remote begins in buf
	next   int   // the one that is probably asked for next
}

// Reserve makes room for reading ahead, in memory: a page that is written for the first
// time in a pause costs as much as reading several stacks.
func (m *Memory) Reserve() {
	const (
		bytes  = 64 << 10 // the stacks of some thirty threads that sleep
		ranges = 128
	)
	a := ahead{buf: make([]byte, bytes), remote: make([]unix.RemoteIovec, ranges), begins: make([]int, ranges)}
	for i := 0; i < bytes; i += pageSize {
		a.buf[i] = 1
	}
	kernelWrites(a.buf)
	for i := range ranges {
		a.remote[i].Len, a.begins[i] = 1, 1
	}
	a.remote, a.begins = a.remote[:0], a.begins[:0]
	m.ahead = a
}

// Plan adds n bytes at addr to what Fetch is to read. It gives false if there is no room
// for them: of what was reserved, or because so much is planned already.
func (m *Memory) Plan(addr uint64, n int) bool {
	a := &m.ahead
	at := a.used()
	if n <= 0 || n > len(a.buf)-at || len(a.remote) == cap(a.remote) {
		return false
	}
	a.remote = append(a.remote, unix.RemoteIovec{Base: uintptr(addr), Len: n})
	a.begins = append(a.begins, at)
	return true
}

// used gives how much of the buffer belongs to ranges.
func (a *ahead) used() int {
	if n := len(a.remote); n > 0 {
		return a.begins[n-1] + a.remote[n-1].Len
	}
	return 0
}

// Fetch reads what is planned. Until Forget, ReadAt gives from there what lies in one of
// the ranges. A range that cannot be read, and those behind it, are left to ReadAt.
func (m *Memory) Fetch() {
	a := &m.ahead
	if len(a.remote) == 0 {
		return
	}
	got := max(0, processReadv(m.pid, &a.local, a.buf[:a.used()], a.remote))
	for a.used() > got {
		a.remote, a.begins = a.remote[:len(a.remote)-1], a.begins[:len(a.begins)-1]
	}
}

// Forget drops what was planned and read. What was read is right for as long as nothing
// runs that could change it.
func (m *Memory) Forget() {
	a := &m.ahead
	a.remote, a.begins, a.next = a.remote[:0], a.begins[:0], 0
}

// give fills b with what was read of it, if it lies in one of the ranges. They are
// usually asked for in their order.
func (a *ahead) give(b []byte, addr uint64) bool {
	for n := range a.remote {
		i := a.next + n
		if i >= len(a.remote) {
			i -= len(a.remote)
		}
		r := &a.remote[i]
		if off := addr - uint64(r.Base); off < uint64(r.Len) && uint64(len(b)) <= uint64(r.Len)-off {
			copy(b, a.buf[a.begins[i]+int(off):])
			a.next = i
			return true
		}
	}
	return false
}
