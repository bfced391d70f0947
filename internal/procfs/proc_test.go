package procfs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// start runs a program that the test owns and opens it.
func start(t *testing.T, cmd *exec.Cmd) *Proc {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	p, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func sleeper(t *testing.T) *Proc { return start(t, exec.Command("sleep", "1000")) }

// eventually waits for a condition that the kernel brings about.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 3000 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("still not: %s", what)
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Errorf("got %v (code %q), want code %q", err, fault.CodeOf(err), code)
	}
}

func compile(t *testing.T, source string, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	src, out := filepath.Join(dir, "p.c"), filepath.Join(dir, "p")
	if err := os.WriteFile(src, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command("gcc", append(flags, "-o", out, src, "-pthread")...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, b)
	}
	return out
}

func TestOpen(t *testing.T) {
	t.Parallel()
	for _, pid := range []int{-1, 0, 1<<31 - 1} {
		_, err := Open(pid)
		wantCode(t, err, "no-such-process")
	}
	p := sleeper(t)
	if p.PID() == 0 {
		t.Error("PID is 0")
	}
	if exe, err := p.Exe(); err != nil || filepath.Base(exe) == "" || !filepath.IsAbs(exe) {
		t.Errorf("Exe: %q, %v", exe, err)
	}
	if tids, err := p.Tasks(); err != nil || !slices.Equal(tids, []int{p.PID()}) {
		t.Errorf("Tasks: %v, %v", tids, err)
	}
	pids, err := Processes()
	if err != nil || !slices.Contains(pids, p.PID()) || !slices.IsSorted(pids) {
		t.Errorf("Processes: %v, %v", pids, err)
	}
	eventually(t, "the child runs sleep", func() bool {
		name, err := p.Comm(0)
		return err == nil && name == "sleep"
	})
	eventually(t, "sleep sleeps", func() bool {
		s, err := p.Syscall(0)
		return err == nil && s.Nr == unix.SYS_CLOCK_NANOSLEEP && s.PC != 0 && s.SP != 0
	})
	_, err = p.Status(1<<31 - 1)
	wantCode(t, err, "no-such-thread")
	if !errors.Is(err, unix.ESRCH) {
		t.Errorf("%v is not ESRCH", err)
	}
}

func TestOpenThread(t *testing.T) {
	t.Parallel()
	// The test's own process has other threads.
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil || len(entries) < 2 {
		t.Fatalf("%d threads, %v", len(entries), err)
	}
	for _, e := range entries {
		tid, err := strconv.Atoi(e.Name())
		if err != nil || tid == os.Getpid() {
			continue
		}
		_, err = Open(tid)
		if code := fault.CodeOf(err); code != "not-a-process" && code != "no-such-process" {
			t.Errorf("thread %s: %v", e.Name(), err)
		}
	}
}

// TestGone: a process that has ended is never confused with another one.
func TestGone(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "1000")
	p := start(t, cmd)
	if _, err := p.StartTime(); err != nil {
		t.Fatal(err)
	}
	mem, err := p.Mem(false)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	cmd.Process.Kill()

	// Until its parent takes notice it is a zombie.
	eventually(t, "the child is a zombie", func() bool {
		st, err := p.Status(0)
		return err == nil && st.Dead()
	})
	_, err = p.Maps()
	wantCode(t, err, "zombie")
	err = mem.ReadAt(make([]byte, 1), 0x1000)
	wantCode(t, err, "memory-gone")

	cmd.Wait()
	_, err = p.Status(0)
	wantCode(t, err, "no-such-process")
	if !errors.Is(err, unix.ESRCH) {
		t.Errorf("%v is not ESRCH", err)
	}
	_, err = p.Maps()
	wantCode(t, err, "no-such-process")
	_, err = p.Mem(false)
	wantCode(t, err, "no-such-process")
	_, err = p.Tasks()
	wantCode(t, err, "no-such-process")
	_, err = p.StartTime()
	wantCode(t, err, "no-such-process")
	_, err = p.Exe()
	wantCode(t, err, "no-such-process")
	_, err = p.OpenInRoot("/etc/passwd")
	wantCode(t, err, "no-such-process")
}

func TestKernelThread(t *testing.T) {
	t.Parallel()
	pids, err := Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		p, err := Open(pid)
		if err != nil {
			continue
		}
		st, err := p.Status(0)
		if err == nil && st.Kthread && !st.Dead() {
			_, err := p.Maps()
			p.Close()
			if code := fault.CodeOf(err); code != "kernel-thread" && !(os.Getuid() != 0 && code == "permission-denied") {
				t.Errorf("kernel thread %d: %v", pid, err)
			}
			return
		}
		p.Close()
	}
	t.Skipf("none of the %d processes in this PID namespace is a kernel thread", len(pids))
}

func TestLock(t *testing.T) {
	t.Parallel()
	a := sleeper(t)
	b, err := Open(a.PID())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	never := func() { t.Error("waits for nobody") }
	if err := a.Lock(context.Background(), never); err != nil {
		t.Fatal(err)
	}
	waits := 0
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err = b.Lock(ctx, func() { waits++ })
	wantCode(t, err, "target-locked")
	if fault.ExitStatus(err) != int(fault.Busy) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wrong kind: %v", err)
	}
	if waits != 1 {
		t.Errorf("wait was called %d times", waits)
	}
	got := make(chan error, 1)
	waiting := make(chan struct{})
	go func() { got <- b.Lock(context.Background(), func() { close(waiting) }) }()
	<-waiting
	a.Close()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestMem(t *testing.T) {
	t.Parallel()
	p := sleeper(t)
	// Its code is about to be overwritten: it must not need it any more.
	eventually(t, "sleep sleeps", func() bool {
		s, err := p.Syscall(0)
		return err == nil && s.Nr == unix.SYS_CLOCK_NANOSLEEP
	})
	all, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(m Map) bool { return m.Perm&Exec != 0 && strings.Contains(m.Path, "sleep") })
	if i < 0 {
		t.Fatalf("no code in %v", all)
	}
	text := all[i]
	mem, err := p.Mem(true)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if mem.Fd() < 0 {
		t.Error("no file descriptor")
	}
	// Code is written although it is mapped r-xp, and the file is not.
	want := []byte("written")
	old := make([]byte, len(want))
	if err := mem.ReadAt(old, text.Start); err != nil {
		t.Fatal(err)
	}
	if err := mem.WriteAt(want, text.Start); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := mem.ReadAt(got, text.Start); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read back %q, %v", got, err)
	}
	if maps, err := p.Maps(); err != nil || !slices.ContainsFunc(maps, func(m Map) bool { return m.Start == text.Start && m.Perm == Read|Exec }) {
		t.Errorf("permissions changed: %v, %v", maps, err)
	}
	f, err := p.OpenMapped(text)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, int64(text.Offset)); err != nil || !bytes.Equal(got, old) {
		t.Errorf("the file has %x, %v; it had %x", got, err, old)
	}

	// A transfer that is not whole is an error.
	wantCode(t, mem.ReadAt(make([]byte, 1), 0), "memory-read")
	wantCode(t, mem.WriteAt(make([]byte, 1), 0), "memory-write")
	wantCode(t, mem.ReadAt(make([]byte, 1), 1<<63), "memory-read")
	maps, _ := p.Maps()
	for i := range maps[:len(maps)-1] {
		m := maps[i]
		if m.Perm&Read == 0 || maps[i+1].Start == m.End || m.Path == "[vvar]" {
			continue
		}
		wantCode(t, mem.ReadAt(make([]byte, 16), m.End-8), "memory-read")
		if err := mem.ReadAt(make([]byte, 8), m.End-8); err != nil {
			t.Errorf("the end of %v: %v", m, err)
		}
		break
	}
	ro, err := p.Mem(false)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	wantCode(t, ro.WriteAt(want, text.Start), "memory-write")
}

// TestMemExec: memory opened before an execve is not that of the new program.
func TestMemExec(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sh", "-c", "read x; exec sleep 1000")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, cmd)
	mem, err := p.Mem(false)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	if err := mem.ReadAt(make([]byte, 4), maps[0].Start); err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "\n")
	eventually(t, "sh has become sleep", func() bool {
		name, err := p.Comm(0)
		return err == nil && name == "sleep"
	})
	wantCode(t, mem.ReadAt(make([]byte, 4), maps[0].Start), "memory-gone")
}

const zombieLeader = `
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static void *run(void *p) { puts("READY"); fflush(stdout); for (;;) pause(); }
int main(void) { pthread_t t; pthread_create(&t, 0, run, 0); pthread_exit(0); }
`

func TestZombieLeader(t *testing.T) {
	t.Parallel()
	exe := compile(t, zombieLeader)
	cmd := exec.Command(exe)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, cmd)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the main thread has ended", func() bool {
		st, err := p.Status(0)
		return err == nil && st.Dead()
	})
	tids, err := p.Tasks()
	if err != nil || len(tids) != 2 {
		t.Fatalf("Tasks: %v, %v", tids, err)
	}
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(maps, func(m Map) bool { return m.Path == exe })
	if i < 0 {
		t.Fatalf("no %s in %v", exe, maps)
	}
	mem, err := p.Mem(false)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	magic := make([]byte, 4)
	if err := mem.ReadAt(magic, maps[i].Start); err != nil || string(magic) != "\x7fELF" {
		t.Errorf("memory: %q, %v", magic, err)
	}
	if got, err := p.Exe(); err != nil || got != exe {
		t.Errorf("Exe: %q, %v", got, err)
	}
	if f, err := p.OpenInRoot(exe); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	if os.Getuid() == 0 {
		f, err := p.OpenMapped(maps[i])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.ReadAt(magic, 0); err != nil || string(magic) != "\x7fELF" {
			t.Errorf("mapped file: %q, %v", magic, err)
		}
	}
}

// TestOddPath: a program whose path has spaces, a newline and parentheses, and
// that is deleted while it runs.
func TestOddPath(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a  b\n(x) ")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	exe := compile(t, zombieLeader)
	odd := filepath.Join(dir, ") R 1")
	if err := os.Rename(exe, odd); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(odd)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, cmd)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if name, err := p.Comm(0); err != nil || name != ") R 1" {
		t.Errorf("Comm: %q, %v", name, err)
	}
	if st, err := p.StartTime(); err != nil || st == 0 {
		t.Errorf("StartTime: %d, %v", st, err)
	}
	for _, deleted := range []bool{false, true} {
		if deleted {
			os.Remove(odd)
		}
		maps, err := p.Maps()
		if err != nil {
			t.Fatal(err)
		}
		if maps[0].Path != odd || maps[0].Deleted != deleted {
			t.Errorf("deleted %v: %+v", deleted, maps[0])
		}
	}
	maps, _ := p.Maps()
	f, err := p.OpenMapped(maps[0])
	if os.Getuid() != 0 && fault.CodeOf(err) == "permission-denied" {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 0); err != nil || string(magic) != "\x7fELF" {
		t.Errorf("mapped file: %q, %v", magic, err)
	}
	stack := slices.IndexFunc(maps, func(m Map) bool { return m.Path == "[stack]" })
	_, err = p.OpenMapped(maps[stack])
	wantCode(t, err, "not-mapped")
}

// TestBeneath: neither links nor ".." leave the root, with and without openat2.
func TestBeneath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"root/lib/sub", "root/etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("secret", "outside")
	write("root/secret", "inside")
	write("root/lib/sub/f", "f")
	for name, target := range map[string]string{
		"root/abs": "/secret", "root/up": "../../../../secret", "root/lib/rel": "./sub/../sub/f", "root/dir": "/lib",
		"root/loop": "loop", "root/chain": "abs",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	p := &Proc{pid: os.Getpid(), fd: fd}
	for name, open := range map[string]func(int, string) (int, error){"openat2": openBeneath, "walk": walkBeneath} {
		for path, want := range map[string]string{
			"/secret": "inside", "secret": "inside", "/abs": "inside", "up": "inside", "/../../secret": "inside", "chain": "inside",
			"/lib/rel": "f", "dir/sub/f": "f", "//dir//./sub/f": "f", "lib/../lib/sub/../../secret": "inside",
		} {
			got, err := open(fd, path)
			if err != nil {
				t.Errorf("%s %s: %v", name, path, err)
				continue
			}
			f, err := p.reopen(got, path)
			if err != nil {
				t.Errorf("%s %s: %v", name, path, err)
				continue
			}
			if b, err := io.ReadAll(f); err != nil || string(b) != want {
				t.Errorf("%s %s: %q, %v; want %q", name, path, b, err, want)
			}
			f.Close()
		}
		for path, want := range map[string]error{"loop": unix.ELOOP, "none": unix.ENOENT, "secret/x": unix.ENOTDIR, "lib/none/..": unix.ENOENT} {
			if got, err := open(fd, path); !errors.Is(err, want) {
				t.Errorf("%s %s: %d, %v; want %v", name, path, got, err, want)
			}
		}
	}
}

// TestOpenInRoot: a process in a chroot, and files that are no files.
func TestOpenInRoot(t *testing.T) {
	t.Parallel()
	p := sleeper(t)
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]string{
		fifo: "not-a-regular-file", "/dev/null": "not-a-regular-file", dir: "not-a-regular-file", dir + "/none": "no-such-file",
		fifo + "/x": "no-such-file",
	} {
		_, err := p.OpenInRoot(path)
		wantCode(t, err, code)
	}
	if os.Getuid() != 0 {
		t.Skip("chroot(2) needs root")
	}
	exe := compile(t, zombieLeader, "-static")
	jail := t.TempDir()
	if err := os.Rename(exe, filepath.Join(jail, "p")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/p", filepath.Join(jail, "link")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/p")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: jail}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	q := start(t, cmd)
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/p", "/link", "/../link"} {
		f, err := q.OpenInRoot(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f.Close()
	}
	_, err = q.OpenInRoot("/etc/passwd")
	wantCode(t, err, "no-such-file")
}
