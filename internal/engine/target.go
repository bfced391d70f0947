package engine

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"hotpatch/elfsym"
	"hotpatch/inject"
	"hotpatch/internal/fault"
	"hotpatch/internal/ledger"
	"hotpatch/internal/procfs"
	"hotpatch/ptrace"
)

// target is one process that is being worked on.
type target struct {
	proc  *procfs.Proc
	mem   *procfs.Mem
	space *elfsym.Space

	tracer *ptrace.Tracer // while one runs

	exe    string // path of the program
	region inject.Region
	ledger *ledger.Ledger // empty if there is none yet
	done   bool           // the ledger's transaction is committed
}

// open opens a process for looking (write false) or for changing it, which
// takes its lock first. Faults of kind NoAccess say why a process cannot be
// worked on.
func open(ctx context.Context, pid int, write bool, waiting func()) (*target, error) {
	t := &target{}
	if err := t.open(ctx, pid, write, waiting); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *target) open(ctx context.Context, pid int, write bool, waiting func()) (err error) {
	if write && pid == os.Getpid() {
		return &fault.Error{Kind: fault.NoAccess, Code: "own-process", What: "cannot work on process " + fmt.Sprint(pid), Why: "it is this very hotpatch"}
	}
	if t.proc, err = procfs.Open(pid); err != nil {
		return err
	}
	// First the lock: until another hotpatch has ended, it is the tracer.
	if write {
		if err := t.proc.Lock(ctx, waiting); err != nil {
			return err
		}
	}
	if err := t.suitable(write); err != nil {
		return err
	}
	if t.mem, err = t.proc.Mem(write); err != nil {
		return err
	}
	if t.exe, err = t.proc.Exe(); err != nil {
		return err
	}
	maps, err := t.proc.Maps()
	if err != nil {
		return err
	}
	if write {
		if err := t.machine(maps); err != nil {
			return err
		}
	}
	t.ledger = &ledger.Ledger{Format: ledger.Format}
	if r, ok := inject.Find(maps, t.mem); ok {
		t.region = r
		t.ledger, t.done, err = ledger.Load(r.Root(), func(addr uint64, b []byte) error { return t.mem.ReadAt(b, addr) })
	}
	return err
}

// trace runs f with a tracer for the process.
func (t *target) trace(f func(*ptrace.Tracer) error) error {
	return ptrace.Run(t.proc, func(tr *ptrace.Tracer) error {
		t.tracer = tr
		defer func() { t.tracer = nil }()
		return f(tr)
	})
}

// mapped reports whether anything is mapped at an address.
func (t *target) mapped(addr uint64) bool {
	maps, err := t.proc.Maps()
	if err != nil {
		return true // nothing is known
	}
	return slices.ContainsFunc(maps, func(m procfs.Map) bool { return m.Contains(addr) })
}

// resolve reads the modules, which is dear and not needed by every verb.
func (t *target) resolve(debugDirs []string) (err error) {
	if t.space != nil {
		t.space.Close()
	}
	t.space, err = elfsym.Read(t.proc, debugDirs...)
	return err
}

func (t *target) close() {
	if t.space != nil {
		t.space.Close()
	}
	if t.mem != nil {
		t.mem.Close()
	}
	if t.proc != nil {
		t.proc.Close()
	}
}

// program is the name of the program for messages.
func (t *target) program() string { return filepath.Base(t.exe) }

// suitable refuses processes that cannot be worked on whatever the patch is.
func (t *target) suitable(write bool) error {
	pid := t.proc.PID()
	st, err := t.proc.Status(0)
	if err != nil {
		return err
	}
	refuse := func(code, why, hint string) error {
		return &fault.Error{Kind: fault.NoAccess, Code: code, What: fmt.Sprintf("cannot work on process %d", pid), Where: st.Name, Why: why, Hint: hint}
	}
	switch {
	case st.Kthread:
		return refuse("kernel-thread", "it is a thread of the kernel", "")
	case st.State == 'Z' && st.Threads <= 1, st.State == 'X':
		return refuse("zombie", "it has ended, and its parent has not waited for it yet", "")
	}
	if !write {
		return nil
	}
	if st.TracerPid != 0 {
		return ptrace.Traced(pid, st.TracerPid)
	}
	return nil
}

// machine refuses a program for another processor mode, such as a 32-bit one, by
// the ELF header that is mapped. Where none is to be seen, no symbol will be found either.
func (t *target) machine(maps []procfs.Map) error {
	var head [20]byte // up to e_machine
	for _, m := range maps {
		if m.Path != t.exe || m.Offset != 0 || t.mem.ReadAt(head[:], m.Start) != nil || string(head[:len(elf.ELFMAG)]) != elf.ELFMAG {
			continue
		}
		class, machine := elf.Class(head[elf.EI_CLASS]), elf.Machine(binary.LittleEndian.Uint16(head[18:]))
		if class == elf.ELFCLASS64 && machine == elf.EM_X86_64 {
			return nil
		}
		return &fault.Error{Kind: fault.NoAccess, Code: "not-64-bit", What: fmt.Sprintf("cannot work on process %d", t.proc.PID()), Where: t.exe,
			Why: fmt.Sprintf("its program is %v for %v, and only 64-bit programs for x86-64 can be patched", class, machine)}
	}
	return nil
}

// loader looks at everything that running code in the process needs, and refuses
// before anything is touched.
func (t *target) loader() (*inject.Loader, error) {
	st, err := t.proc.Status(0)
	if err != nil {
		return nil, err
	}
	if st.State == 'T' {
		return nil, inject.Stopped(t.proc.PID())
	}
	if err := t.unconfined(); err != nil {
		return nil, err
	}
	if t.space == nil {
		if err := t.resolve(nil); err != nil {
			return nil, err
		}
	}
	// Nothing must end half way for lack of them; the modules may be read again.
	if err := NeedDescriptors(16 + len(t.space.Modules)); err != nil {
		return nil, err
	}
	loader, err := inject.Prepare(t.proc, t.mem, t.space)
	var b [1]byte
	if err != nil && t.mem.ReadAt(b[:], t.space.Modules[0].Lo) != nil {
		return nil, &fault.Error{Kind: fault.NoAccess, Code: "memory-gone", What: fmt.Sprintf("cannot work on process %d", t.proc.PID()), Where: t.program(),
			Why: "it has ended or runs another program now"}
	}
	return loader, err
}

// NeedDescriptors is fault "no-descriptors" unless this process may open n more
// files.
func NeedDescriptors(n int) error {
	for range n {
		fd, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fault.Error{Kind: fault.Failed, Code: "no-descriptors", What: "cannot begin", Err: err,
				Why: fmt.Sprintf("hotpatch itself may open fewer than %d more files", n), Hint: "raise its limit (ulimit -n)"}
		}
		defer unix.Close(fd)
	}
	return nil
}

// unconfined refuses a process all of whose threads have a seccomp policy: what
// hotpatch runs in the process is begun by one of them, and inherits it.
func (t *target) unconfined() error {
	tids, err := t.proc.Tasks()
	if err != nil {
		return err
	}
	mode := ""
	for _, tid := range tids {
		st, err := t.proc.Status(tid)
		switch {
		case err != nil || !st.HasMemory:
		case st.Seccomp == 0:
			return nil
		default:
			mode = map[int]string{1: "strict", 2: "filter"}[st.Seccomp]
		}
	}
	return &fault.Error{Kind: fault.NoAccess, Code: "seccomp", What: fmt.Sprintf("cannot load a library into process %d", t.proc.PID()), Where: t.program(),
		Why:  fmt.Sprintf("all of its threads have a seccomp policy (%s), and a system call that the policy forbids may kill it", mode),
		Hint: "start the service without a system call filter (systemd: SystemCallFilter=) to make it patchable"}
}
