package unwind

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotpatch/elfsym"
	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
	"hotpatch/ptrace"
)

// source reads a program of testdata.
func source(t testing.TB, name string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{name: string(b)}
}

// target is a process with an unwinder for it.
type target struct {
	pid   int
	proc  *procfs.Proc
	space *elfsym.Space
	mem   *procfs.Mem
	u     *Unwinder
}

// open makes an unwinder for a process; the modules are those of this moment.
func open(t testing.TB, pid int) *target {
	t.Helper()
	p, err := procfs.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	s, err := elfsym.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	mem, err := p.Mem(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return &target{pid: pid, proc: p, space: s, mem: mem, u: New(s, mem)}
}

// refresh tells the unwinder what is mapped now.
func (x *target) refresh(t testing.TB) {
	t.Helper()
	maps, err := x.proc.Maps()
	if err != nil {
		t.Fatal(err)
	}
	x.u.SetMaps(maps)
}

func fromPtrace(r *ptrace.Regs) Regs {
	return Regs{
		RAX: r.Rax, RBX: r.Rbx, RCX: r.Rcx, RDX: r.Rdx, RSI: r.Rsi, RDI: r.Rdi, RBP: r.Rbp, RSP: r.Rsp,
		R8: r.R8, R9: r.R9, R10: r.R10, R11: r.R11, R12: r.R12, R13: r.R13, R14: r.R14, R15: r.R15, RIP: r.Rip,
	}
}

const walkLimit = 2000

// walks stops all threads, walks them, and lets them go.
func (x *target) walks(t testing.TB) map[int]Walk {
	t.Helper()
	x.refresh(t)
	list := map[int]Walk{}
	err := ptrace.Run(x.proc, func(tr *ptrace.Tracer) error {
		w, err := tr.StopAll(10 * time.Second)
		if err != nil {
			return err
		}
		defer w.Resume()
		for _, th := range w.Threads {
			list[th.TID] = x.u.Walk(fromPtrace(&th.Regs), walkLimit)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for tid, w := range list {
		x.u.Describe(&w)
		check(t, tid, &w)
		list[tid] = w
	}
	return list
}

// check tests what holds of every walk.
func check(t testing.TB, tid int, w *Walk) {
	t.Helper()
	if len(w.Frames) == 0 || len(w.Frames) > walkLimit {
		t.Fatalf("thread %d: %d frames", tid, len(w.Frames))
	}
	if w.Complete != (w.Why == "") {
		t.Errorf("thread %d: complete %v, why %q", tid, w.Complete, w.Why)
	}
	for i := range w.Frames {
		f := &w.Frames[i]
		if !f.Exact && f.At == 0 && !strings.Contains(w.Frames[i-1].Function, "fork") && !strings.Contains(w.Frames[i-1].Function, "longjmp") {
			t.Errorf("thread %d: frame %d does not say where its return address stands: %s", tid, i, chain(w))
		}
		if f.At != 0 && (!w.Returns(f.At) || !w.Covers(f.At)) {
			t.Errorf("thread %d: the return address of frame %d at %#x is not covered: %s", tid, i, f.At, chain(w))
		}
		if last := i == len(w.Frames)-1; !last && (f.CFA == 0 || f.How == Unknown) {
			t.Errorf("thread %d: frame %d is not whole: %s", tid, i, chain(w))
		}
	}
}

// chain describes a walk for a message.
func chain(w *Walk) string {
	var b strings.Builder
	fmt.Fprintf(&b, "complete %v %s", w.Complete, w.Why)
	for i, f := range w.Frames {
		module := "?"
		if f.Module != nil {
			module = f.Module.Name
		}
		fmt.Fprintf(&b, "\n  #%d %#x %s %s!%s+%#x sp %#x cfa %#x", i, f.PC, f.How, module, f.Function, f.Offset, f.SP, f.CFA)
	}
	return b.String()
}

// names gives the functions of a walk, the innermost first, without parameters.
func names(w *Walk) []string {
	var list []string
	for _, f := range w.Frames {
		name, _, _ := strings.Cut(f.Function, "(")
		list = append(list, name)
	}
	return list
}

// halt stops a process by job control and waits until all of its threads are
// stopped; the test's end continues it.
func halt(t testing.TB, p *procfs.Proc) {
	t.Helper()
	if err := syscall.Kill(p.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(testtarget.Timeout); ; time.Sleep(time.Millisecond) {
		tids, err := p.Tasks()
		if err != nil {
			t.Fatal(err)
		}
		stopped := 0
		for _, tid := range tids {
			if st, err := p.Status(tid); err == nil && st.State == 'T' {
				stopped++
			}
		}
		if stopped == len(tids) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d threads of process %d are stopped", stopped, len(tids), p.PID())
		}
	}
}

func resume(t testing.TB, p *procfs.Proc) {
	t.Helper()
	if err := syscall.Kill(p.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// openFile opens an ELF file if it is there.
func openFile(name string) (*elfsym.Image, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return elfsym.NewImage(bytes.NewReader(b), int64(len(b)))
}

// withoutSections opens a copy of an ELF file that has no section headers, and
// no segments of the given types.
func withoutSections(t testing.TB, name string, types ...elf.ProgType) *elfsym.Image {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	le.PutUint64(b[40:], 0) // e_shoff
	le.PutUint32(b[60:], 0) // e_shnum, e_shstrndx
	for i := range uint64(le.Uint16(b[56:])) {
		ph := b[le.Uint64(b[32:])+i*56:]
		if slices.Contains(types, elf.ProgType(le.Uint32(ph))) {
			le.PutUint32(ph, uint32(elf.PT_NULL))
		}
	}
	im, err := elfsym.NewImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// damaged opens a copy of an ELF file whose .eh_frame begins with nonsense.
func damaged(t testing.TB, name string) *elfsym.Image {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	im, err := elfsym.NewImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	s, ok := im.Section(".eh_frame")
	if !ok {
		t.Fatal("no .eh_frame")
	}
	binary.LittleEndian.PutUint32(b[s.Off:], 0x7fffffff)
	im, err = elfsym.NewImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return im
}
