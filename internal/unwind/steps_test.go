package unwind

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hotpatch/internal/testtarget"
	"hotpatch/trampoline"
)

// stepper executes a process instruction by instruction and keeps a list of the
// return addresses of its own: what call instructions have pushed.
type stepper struct {
	*target
	calls []call // the outermost first
	regs  unix.PtraceRegs
}

// call is one that has not returned: its return address, and where that stands.
type call struct{ ret, at uint64 }

// TestSteps compares the walk at every single instruction of a program, those of
// prologues, epilogues, of PLT stubs, of the dynamic linker and of libc included, with the calls
// that were executed.
func TestSteps(t *testing.T) {
	t.Parallel()
	for i, c := range []struct {
		compiler string
		flags    []string
		tree     string
	}{
		{"g++", []string{"-O2", "-Wl,-z,lazy"}, ""},
		{"clang++", []string{"-O2", "-Wl,-z,lazy"}, ""},
		{"g++", []string{"-O0", "-Wl,-z,lazy"}, ""},
		{"g++", []string{"-Os", "-no-pie", "-fno-pie", "-Wl,-z,now", "-fcf-protection=full"}, ""},
		{"g++", []string{"-O3", "-march=x86-64-v3", "-mno-red-zone", "-maccumulate-outgoing-args"}, ""},
		{"clang++", []string{"-O1", "-fno-omit-frame-pointer"}, ""},
		{"g++", []string{"-O2", "-mpush-args", "-mno-accumulate-outgoing-args", "-fno-plt"}, ""},
		{"g++", []string{"-O2", "-static-libgcc", "-static-libstdc++"}, ""},
		{"clang++", []string{"-O0"}, ""},
		{"g++", []string{"-O1"}, "bullseye"},
		{"g++", []string{"-O0"}, "bullseye"},
		{"g++", []string{"-O1"}, "trixie"},
		{"g++", []string{"-O0"}, "trixie"},
	} {
		name := strings.TrimSpace(c.tree + " " + c.compiler + " " + strings.Join(c.flags, " "))
		t.Run(name, func(t *testing.T) {
			if testing.Short() && c.flags[0] != "-O2" {
				t.Skip("-O2 is enough with -short")
			}
			path := testtarget.Build(t, testtarget.Spec{Files: source(t, "steps.cc"), Compiler: c.compiler, Flags: c.flags, Name: "steps", Tree: c.tree})
			var options []testtarget.Option
			if c.tree != "" {
				options = append(options, testtarget.InTree(c.tree))
			}
			p := testtarget.Start(t, path, options...)
			x := open(t, p.PID())
			if list := x.u.Prepare(); len(list) > 0 {
				t.Fatal(list)
			}
			limit := 0
			switch {
			case testing.Short():
				limit = 15000
			case i > 2 && os.Getenv("HOTPATCH_TEST_ALL") != "1":
				limit = 25000
			}
			if err := (&stepper{target: x}).run(t, func() { p.Send("") }, limit); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func (s *stepper) walk() Walk {
	r := &s.regs
	return s.u.Walk(Regs{
		RAX: r.Rax, RBX: r.Rbx, RCX: r.Rcx, RDX: r.Rdx, RSI: r.Rsi, RDI: r.Rdi, RBP: r.Rbp, RSP: r.Rsp,
		R8: r.R8, R9: r.R9, R10: r.R10, R11: r.R11, R12: r.R12, R13: r.R13, R14: r.R14, R15: r.R15, RIP: r.Rip,
	}, walkLimit)
}

// run attaches, starts the round, and steps until the program reads its input
// again, or up to a limit of steps.
func (s *stepper) run(t *testing.T, start func(), limit int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(s.pid); err != nil {
		return fmt.Errorf("seize: %w", err)
	}
	defer unix.PtraceDetach(s.pid)
	if err := unix.PtraceInterrupt(s.pid); err != nil {
		return fmt.Errorf("interrupt: %w", err)
	}
	if err := s.wait(); err != nil {
		return err
	}
	w := s.walk()
	if !w.Complete {
		return errors.New(chain(&w))
	}
	for _, f := range slices.Backward(w.Frames[1:]) {
		s.calls = append(s.calls, call{f.PC, f.At})
	}
	start()
	steps, ours, incomplete := 0, 0, map[string]int{}
	bad := 0
	exe := s.space.Executable()
	for ; limit == 0 || steps < limit; steps++ {
		again, err := s.step(steps > 1000)
		if err != nil {
			return err
		}
		if again {
			break
		}
		w := s.walk()
		inside := exe.InText(s.regs.Rip)
		if inside {
			ours++
		}
		switch why := s.compare(&w); {
		case why != "":
			s.u.Describe(&w)
			if bad++; bad > 10 {
				return errors.New("too many differences")
			}
			t.Errorf("step %d: %s\ncalls %x\n%s", steps, why, s.calls, chain(&w))
		case !w.Complete && len(w.Frames) == 1 && inside && !strings.HasSuffix(w.Why, whyContradicts) && !strings.HasSuffix(w.Why, whyDelivers):
			s.u.Describe(&w)
			t.Errorf("step %d: %s", steps, chain(&w))
			bad++
		case !w.Complete:
			s.u.Describe(&w)
			incomplete[w.Frames[len(w.Frames)-1].Function+": "+w.Why[strings.Index(w.Why, ": ")+2:]]++
		}
	}
	missed := 0
	for why, n := range incomplete {
		t.Logf("%d times incomplete: %s", n, why)
		missed += n
	}
	t.Logf("%d steps, %d of them in the program itself", steps, ours)
	if ours < 1000 || steps < 10000 {
		t.Errorf("%d steps, %d in the program", steps, ours)
	}
	if missed*20 > steps {
		t.Errorf("%d of %d walks are incomplete", missed, steps)
	}
	return nil
}

// compare reports how a walk differs from the calls that were executed. What an
// incomplete one has found must be right too.
func (s *stepper) compare(w *Walk) string {
	frames := w.Frames
	if frames[0].PC != s.regs.Rip {
		return "the innermost frame is another one"
	}
	calls, rest := s.calls, frames[1:]
	if len(rest) > 0 && rest[0].At == 0 {
		// longjmp says that it returns to where it goes, before it takes what is
		// between off the stack.
		for len(calls) > 0 && calls[len(calls)-1].at < rest[0].SP {
			calls = calls[:len(calls)-1]
		}
		rest = rest[1:]
	}
	for i, f := range rest {
		if i >= len(calls) {
			return "there are more frames than calls"
		}
		if c := calls[len(calls)-1-i]; f.PC != c.ret || f.At != c.at {
			return fmt.Sprintf("frame %#x is not the caller, which is at %#x", f.PC, c.ret)
		}
	}
	if w.Complete && len(rest) != len(calls) {
		return fmt.Sprintf("complete with %d frames, and there are %d calls", len(frames), len(calls))
	}
	return ""
}

// step executes one instruction, unless the program has started its round and is
// about to read its input again, which would block: then again is set.
func (s *stepper) step(started bool) (again bool, err error) {
	var code [15]byte
	if err := s.mem.ReadAt(code[:], s.regs.Rip); err != nil {
		return false, err
	}
	in, decodeErr := trampoline.Decode(code[:], s.regs.Rip)
	before := s.regs
	if started && decodeErr == nil && in.Flow == trampoline.Syscall && before.Rax == unix.SYS_READ && before.Rdi == 0 {
		return true, nil
	}
	if err := unix.PtraceSingleStep(s.pid); err != nil {
		return false, fmt.Errorf("step: %w", err)
	}
	if err := s.wait(); err != nil {
		return false, err
	}
	for n := len(s.calls); n > 0 && s.calls[n-1].at < s.regs.Rsp; n-- {
		s.calls = s.calls[:n-1]
	}
	isCall := decodeErr == nil && (in.Flow == trampoline.Call || in.Flow == trampoline.IndirectCall)
	if isCall && s.regs.Rsp == before.Rsp-8 {
		s.calls = append(s.calls, call{in.Next(), s.regs.Rsp})
	}
	return false, nil
}

func (s *stepper) wait() error {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(s.pid, &ws, unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		if !ws.Stopped() {
			return fmt.Errorf("the program has ended: %v", ws)
		}
		return unix.PtraceGetRegs(s.pid, &s.regs)
	}
}
