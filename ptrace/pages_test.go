package ptrace

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPages: of a mapping, those pages exist that were written to.
func TestPages(t *testing.T) {
	t.Parallel()
	const pages = 2000 // more than one read of the file tells of
	low, err := unix.MmapPtr(-1, 0, nil, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.MunmapPtr(low, pages*pageSize)
	// Huge pages would bring neighbours into being.
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(low), pages*pageSize, unix.MADV_NOHUGEPAGE); errno != 0 && errno != unix.EINVAL {
		t.Fatal(errno)
	}
	at := func(page uint64) uint64 { return uint64(uintptr(low)) + page*pageSize }
	mem, err := os.OpenFile("/proc/self/mem", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	touched := []uint64{3, 4, 700, 1999}
	for _, page := range touched {
		if _, err := mem.WriteAt([]byte{1}, int64(at(page))); err != nil {
			t.Fatal(err)
		}
	}
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	p := NewPages(pagemap)
	var found []uint64
	for from, end := at(0), at(pages); ; {
		begin, to, err := p.Next(from, end)
		if err != nil {
			t.Fatal(err)
		}
		if begin == to {
			break
		}
		for a := begin; a < to; a += pageSize {
			found = append(found, (a-at(0))/pageSize)
		}
		from = to
	}
	if !slices.Equal(found, touched) {
		t.Errorf("pages %v exist, want %v", found, touched)
	}
	p.Forget()
	if from, to, err := p.Next(at(3)+8, at(4)+16); err != nil || from != at(3)+8 || to != at(4)+16 {
		t.Errorf("a part of two pages: %#x to %#x, %v; the mapping begins at %#x", from, to, err, at(0))
	}
}
