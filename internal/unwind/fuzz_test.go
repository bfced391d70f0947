package unwind

import (
	"encoding/binary"
	"os"
	"testing"

	"hotpatch/elfsym"
	"hotpatch/internal/procfs"
)

// FuzzCFI parses tables and computes rows of them: nothing in a table can make
// that panic, hang or allocate much.
func FuzzCFI(f *testing.F) {
	var x builder
	cie := x.record(false, ehCIE(1, "zPLRS", []byte{0x9b, 1, 2, 3, 4, pcrel4, pcrel4}))
	x.eh(cie, 0x1000, 0x100, 0x41, 0x0e, 16, 0x86, 2, 0x0a, 0x0b, 0x0f, 3, 0x77, 8, 6, 0x10, 6, 2, 0x76, 0)
	f.Add(x.b, true)
	for _, name := range []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libgcc_s.so.1"} {
		if im, err := openFile(name); err == nil {
			if t, err := ehTable(im); err == nil {
				f.Add(t.data[:min(len(t.data), 4000)], true)
			}
		}
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 12, 0, 0, 0, 0, 0, 0, 0}, false)
	s := newState(Regs{RSP: 0x2000, RBP: 0x2100, RIP: 0x1010})
	f.Fuzz(func(t *testing.T, data []byte, eh bool) {
		tb, err := parseTable(data, 0, format{eh: eh, open: len(data)%2 == 0, fixed: true}, anywhere)
		if (tb == nil) != (err != nil) {
			t.Fatalf("table %v, error %v", tb, err)
		}
		if err != nil {
			_ = err.Error()
			return
		}
		u := &Unwinder{mem: pages{mem: fakeMemory{0x2000: make([]byte, pageSize)}}}
		for i := range tb.fdes {
			d := &tb.fdes[i]
			if i > 0 && tb.fdes[i-1].lo > d.lo {
				t.Fatal("not sorted")
			}
			for _, pc := range []uint64{d.lo, d.lo + (d.hi-d.lo)/2, d.hi - 1} {
				u.m.steps = maxSteps
				if u.m.find(tb, d, pc) != "" {
					continue
				}
				cfa, _ := u.cfa(&s, tb, &u.m.row)
				for reg := range numRegs {
					u.restore(&s, tb, &u.m.row.regs[reg], reg, cfa)
				}
			}
		}
	})
}

// FuzzWalk walks with any registers over any stack, with the tables of a real
// library.
func FuzzWalk(f *testing.F) {
	const name = "/lib/x86_64-linux-gnu/libc.so.6"
	im, err := openFile(name)
	if err != nil {
		f.Skip(err)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		f.Fatal(err)
	}
	const bias, stack, size = 0x7f0000000000, 0x7ffd00000000, 4 * pageSize
	m := &elfsym.Module{Name: "libc.so.6", Path: name, Kind: elfsym.Library, Image: im, Bias: bias, Lo: bias, Hi: bias + 1<<22}
	code := procfs.Map{Start: m.Lo, End: m.Hi, Perm: procfs.Read | procfs.Exec, Inode: 1}
	m.Maps = []procfs.Map{code}
	maps := []procfs.Map{code, {Start: stack, End: stack + size, Perm: procfs.Read | procfs.Write, Path: "[stack]"}}
	mem := fuzzMemory{image: im, bias: bias, stack: stack, words: make([]byte, size)}
	u := New(&elfsym.Space{Modules: []*elfsym.Module{m}, Maps: maps}, &mem)
	if list := u.Prepare(); len(list) > 0 {
		f.Fatal(list)
	}
	for _, d := range u.codes[0].tables[0].fdes[:64] {
		words := binary.LittleEndian.AppendUint64(nil, bias+d.hi)
		f.Add(uint64(0), uint64(0x100), d.lo, uint64(stack), words)
	}
	f.Add(uint64(0), uint64(0), uint64(0), uint64(0), content[:256])
	f.Fuzz(func(t *testing.T, sp, bp, pc, other uint64, words []byte) {
		clear(mem.words)
		copy(mem.words, words)
		u.forget()
		r := Regs{RIP: bias + pc%(1<<22), RSP: stack + sp%size, RBP: stack + bp%(2*size), RBX: other, RDI: other, R10: stack + other%size, RDX: bias + pc}
		w := u.Walk(r, 300)
		if len(w.Frames) == 0 || len(w.Frames) > 300 || w.Complete != (w.Why == "") {
			t.Fatal(chain(&w))
		}
		for i, frame := range w.Frames[1:] {
			if below := w.Frames[i]; !frame.Signal && (frame.SP < below.SP || below.CFA != frame.SP) {
				t.Fatalf("frame %d does not lie above: %s", i+1, chain(&w))
			}
		}
	})
}

// fuzzMemory is a library's image and a stack.
type fuzzMemory struct {
	image       *elfsym.Image
	bias, stack uint64
	words       []byte
}

func (f *fuzzMemory) ReadAt(b []byte, addr uint64) error {
	if off := addr - f.stack; off < uint64(len(f.words)) && off+uint64(len(b)) <= uint64(len(f.words)) {
		copy(b, f.words[off:])
		return nil
	}
	return f.image.ReadVaddr(b, addr-f.bias)
}
