package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/testtarget"
)

// ofTheRuntime are the system calls that Go's runtime makes for itself, at other
// places in each run: they do nothing to a target.
var ofTheRuntime = []uint64{
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_EPOLL_PWAIT, unix.SYS_SCHED_YIELD, unix.SYS_MADVISE, unix.SYS_RT_SIGPROCMASK,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL, unix.SYS_GETPID, unix.SYS_GETTID,
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_CLONE, unix.SYS_CLONE3, unix.SYS_ARCH_PRCTL, unix.SYS_EXIT, unix.SYS_PRLIMIT64,
}

// killAt runs hotpatch from system call to system call, as a debugger does, and kills
// it at the nth one that is not the runtime's, over all of its threads: on its way
// into it, or when it has been made. It gives false if there are not so many.
func killAt(t *testing.T, n int, made bool, args ...string) (killed bool) {
	t.Helper()
	runtime.LockOSThread() // the thread is the tracer
	defer runtime.UnlockOSThread()
	cmd := exec.Command(testtarget.Hotpatch(t), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	defer func() { _ = cmd.Process.Release() }() // it was waited for
	watchdog := time.AfterFunc(time.Minute, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	defer watchdog.Stop()

	type thread struct {
		inside bool // of a system call
		number int  // of the system call that it is in, from 1; 0: not counted
	}
	threads := map[int]*thread{}
	calls := 0
	for {
		var ws unix.WaitStatus
		// Only the threads of this hotpatch: the thread may have begun commands of other tests.
		tid, err := unix.Wait4(-pid, &ws, unix.WALL|unix.WNOTHREAD, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatalf("wait for %v: %v", cmd, err)
		}
		if ws.Exited() || ws.Signaled() {
			delete(threads, tid)
			if tid == pid {
				if !killed && (!ws.Exited() || ws.ExitStatus() != 0) {
					t.Fatalf("%v ended with %#x", cmd, ws)
				}
				return killed
			}
			continue
		}
		th, known := threads[tid]
		if !known {
			th = &thread{}
			threads[tid] = th
			if err := unix.PtraceSetOptions(tid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil && err != unix.ESRCH {
				t.Fatal(err)
			}
		}
		signal := 0
		switch {
		case ws.StopSignal() == unix.SIGTRAP|0x80:
			if th.inside = !th.inside; th.inside {
				var regs unix.PtraceRegs
				if unix.PtraceGetRegs(tid, &regs) == nil && !slices.Contains(ofTheRuntime, regs.Orig_rax) {
					calls++
					th.number = calls
				} else {
					th.number = 0
				}
			}
			if th.number == n && th.inside != made && !killed {
				killed = true
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		case ws.StopSignal() == unix.SIGTRAP, !known: // an exec, a clone, the first stop of a thread
		default:
			signal = int(ws.StopSignal())
		}
		if err := unix.PtraceSyscall(tid, signal); err != nil && err != unix.ESRCH {
			t.Fatal(err)
		}
	}
}

// soakSystemCalls kills hotpatch at each of its system calls, one after the other,
// before and after the call, through apply, revert, and revert with unloading.
func soakSystemCalls(t *testing.T, b budget) (f figures) {
	targets := []*soakTarget{newSoakTarget(t, 1), newSoakTarget(t, 4), newSoakTarget(t, 16)}
	verbs := [][]string{{"apply"}, {"revert", "--all"}, {"revert", "--all", "--unload"}}
	most := make(map[string]int)
	rounds := 0
	for ; b.more(f.trials); rounds++ {
		for v, verb := range verbs {
			for _, made := range []bool{false, true} {
				step := 1
				if !b.long {
					step = 180 // the short soak: some of them
				}
				for n := 1 + rand.IntN(step); ; n += step {
					s := targets[(n+rounds+v)%len(targets)]
					args := append([]string{verb[0], "--pid", s.pid()}, verb[1:]...)
					if verb[0] == "apply" {
						if n%3 == 0 { // every step is still to be done
							s.fresh(t)
							args[2] = s.pid()
						}
						args = append(args, s.p1)
					} else {
						apply(t, s.p.PID(), s.p1)
					}
					if !killAt(t, n, made, args...) {
						revert(t, s.p.PID()) // what was applied now
						break
					}
					f.trials++
					name := fmt.Sprint(verb)
					most[name] = max(most[name], n)
					s.settle(t, fmt.Sprintf("%v, killed at call %d (made: %v)", args, n, made))
					f.survived++
				}
			}
		}
	}
	f.note = fmt.Sprintf("%d rounds over all positions, before and after each call: apply %d, revert %d, revert --unload %d; targets of 1, 4 and 16 threads",
		rounds, most[fmt.Sprint(verbs[0])], most[fmt.Sprint(verbs[1])], most[fmt.Sprint(verbs[2])])
	if !b.long {
		f.note = "some positions only"
	}
	return f
}

// soakKills kills hotpatch at any time.
func soakKills(t *testing.T, b budget) (f figures) {
	s := newSoakTarget(t, 4)
	for ; b.more(f.trials); f.trials++ {
		if f.trials%3 == 0 {
			s.fresh(t)
		}
		args := []string{"apply", "--pid", s.pid(), s.p1}
		if f.trials%4 == 3 {
			apply(t, s.p.PID(), s.p1)
			args = []string{"revert", "--pid", s.pid(), "--all", "--unload"}
		}
		command := begin(t, args...)
		time.Sleep(time.Duration(rand.Int64N(int64(14 * time.Millisecond))))
		command.kill()
		if r := command.end(t); r.Exit != 0 && r.Exit != 128+int(syscall.SIGKILL) {
			t.Fatal(r)
		}
		s.settle(t, fmt.Sprintf("trial %d", f.trials))
		f.survived++
	}
	return f
}

// soakStops ends hotpatch as people and service managers do, and takes its terminal
// away.
func soakStops(t *testing.T, b budget) (f figures) {
	s := newSoakTarget(t, 4)
	signals := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, 0}
	for ; b.more(f.trials); f.trials++ {
		signal := signals[f.trials%len(signals)]
		cmd := exec.Command(testtarget.Hotpatch(t), "apply", "--pid", s.pid(), s.p1)
		var master *os.File
		if signal == 0 {
			var slave *os.File
			master, slave = terminal(t)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			slave.Close()
		} else if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.Int64N(int64(14 * time.Millisecond))))
		if signal == 0 {
			master.Close()
		} else {
			_ = cmd.Process.Signal(signal) // it may have ended
		}
		watchdog := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // how it ends depends on when it was met; what matters is the target
		watchdog.Stop()
		s.settle(t, fmt.Sprintf("trial %d, %v", f.trials, signal))
		f.survived++
	}
	return f
}

// terminal opens a pseudo terminal, see pty(7).
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testtarget.Unavailable(t, "no pseudo terminal: %v", err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// soakMemory leaves the target with less and less memory that it may still map, so
// that every mapping which a patch needs fails once.
func soakMemory(t *testing.T, b budget) (f figures) {
	s := newSoakTarget(t, 4)
	done, refused := 0, 0
	for ; b.more(f.trials); f.trials++ {
		pid := s.p.PID()
		var before unix.Rlimit
		if err := unix.Prlimit(pid, unix.RLIMIT_AS, nil, &before); err != nil {
			t.Fatal(err)
		}
		size := uint64(parseNumber(t, statusField(t, pid, "VmSize"))) << 10
		left := rand.Int64N(160 << 20) // a thread's stack and an arena of the C library are large
		if f.trials%5 == 0 {
			left = rand.Int64N(2 << 20)
		}
		scarce := unix.Rlimit{Cur: size + uint64(left), Max: before.Max}
		if err := unix.Prlimit(pid, unix.RLIMIT_AS, &scarce, nil); err != nil {
			t.Fatal(err)
		}
		switch r := testtarget.Run(t, "apply", "--pid", s.pid(), s.p1); r.Exit {
		case 0:
			done++
		case 1, 3, 4, 5, 6:
			refused++
		default:
			t.Fatal(r)
		}
		if err := unix.Prlimit(pid, unix.RLIMIT_AS, &before, nil); err != nil {
			t.Fatal(err)
		}
		s.settle(t, fmt.Sprintf("trial %d with %d bytes left", f.trials, scarce.Cur-size))
		s.fresh(t)
		f.survived++
	}
	f.note = fmt.Sprintf("%d applied, %d refused", done, refused)
	return f
}
