package ptrace

import (
	"bytes"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestAhead: what was fetched is given until it is forgotten; all else is read when it is
// asked for.
func TestAhead(t *testing.T) {
	t.Parallel()
	const pages = 6
	low, err := unix.MmapPtr(-1, 0, nil, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.MunmapPtr(low, pages*pageSize)
	memory := unsafe.Slice((*byte)(low), pages*pageSize)
	fill := func(c byte) {
		for i := range memory {
			if i/pageSize != 3 {
				memory[i] = c
			}
		}
	}
	if err := unix.Mprotect(memory[3*pageSize:4*pageSize], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	at := func(off uint64) uint64 { return uint64(uintptr(low)) + off }
	m := &Memory{pid: os.Getpid()}
	if m.Plan(at(0), 8) {
		t.Error("there is room that nobody has reserved")
	}
	m.Reserve()
	read := func(off uint64, n int, want byte) {
		t.Helper()
		b := make([]byte, n)
		if err := m.ReadAt(b, at(off)); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{want}, n)) {
			t.Errorf("%d bytes at %#x: %v, %x…, want %d", n, off, err, b[:min(n, 8)], want)
		}
	}
	const unreadable = 3 * pageSize
	for range 2 {
		fill(1)
		for _, r := range [][2]int{{64, 128}, {pageSize, pageSize}, {unreadable - 64, 128}, {4 * pageSize, 64}} {
			if !m.Plan(at(uint64(r[0])), r[1]) {
				t.Fatalf("there is no room for %v", r)
			}
		}
		m.Fetch()
		fill(2)
		read(64, 128, 1)
		read(pageSize+8, pageSize-8, 1)
		read(72, 8, 1)             // in no order
		read(191, 1, 1)            // the last byte
		read(pageSize, 0, 1)       // nothing
		read(56, 16, 2)            // begins before it
		read(184, 16, 2)           // ends behind it
		read(5*pageSize, 8, 2)     // was not asked for
		read(unreadable-64, 64, 2) // one of which a part cannot be read
		read(4*pageSize, 64, 2)    // behind that one
		read(0, 3*pageSize, 2)     // around several
		m.Forget()
		read(64, 128, 2)
	}
	m.Fetch() // nothing
	n := 0
	for m.Plan(at(0), pageSize) {
		n++
	}
	if n < 8 || m.Plan(at(0), 1<<20) || m.Plan(at(0), 0) {
		t.Errorf("there is room for %d pages, and for what is too large, or nothing", n)
	}
	m.Forget()
	if m.Plan(at(0), 1<<20) || !m.Plan(at(0), pageSize) {
		t.Error("it has the wrong room after it was forgotten")
	}
}
