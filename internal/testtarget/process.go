package testtarget

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Timeout is how long Start waits for READY. It is generous, since the machine
// may be slow and shared: no test measures time with it.
const Timeout = 30 * time.Second

// Process is a running target. It belongs to one test.
type Process struct {
	t     testing.TB
	cmd   *exec.Cmd
	pid   int
	pidfd int
	stdin io.WriteCloser

	stop   sync.Once
	status syscall.WaitStatus // valid once stop is done

	mu    sync.Mutex
	lines []string      // everything it printed, on stdout or stderr
	next  int           // index of the first line that Line has not given yet
	eof   bool          // no more output will come
	news  chan struct{} // closed, and replaced, when one of the above changes
}

// Option changes how Start starts a program.
type Option func(*starting)

type starting struct {
	args       []string
	env        []string
	dir        string
	tree       string
	cloneflags uintptr
	setsid     bool
	unready    bool
	attr       func(*syscall.SysProcAttr)
}

// Args gives the program its arguments.
func Args(args ...string) Option {
	return func(s *starting) { s.args = append(s.args, args...) }
}

// Env adds "NAME=value" settings to the environment.
func Env(settings ...string) Option {
	return func(s *starting) { s.env = append(s.env, settings...) }
}

// Dir sets the working directory.
func Dir(dir string) Option { return func(s *starting) { s.dir = dir } }

// Namespaces starts the program in new namespaces: unix.CLONE_NEWNS (mounts),
// unix.CLONE_NEWPID (it is process 1 there), unix.CLONE_NEWUSER (it is root
// there; the test's user outside) and the others of namespaces(7). PID still
// gives its number as the test sees it. All but a user namespace need root.
func Namespaces(cloneflags uintptr) Option {
	return func(s *starting) { s.cloneflags |= cloneflags }
}

// InTree starts the program chrooted into the tree of a Debian release, in its
// own mount namespace, with /proc. Build's results have the same path there.
func InTree(release string) Option { return func(s *starting) { s.tree = release } }

// Setsid starts the program in a session of its own.
func Setsid() Option { return func(s *starting) { s.setsid = true } }

// Unready starts a program that prints no READY line: Start does not wait.
func Unready() Option { return func(s *starting) { s.unready = true } }

// Attr changes the attributes of the new process, for what has no option.
func Attr(change func(*syscall.SysProcAttr)) Option {
	return func(s *starting) { s.attr = change }
}

// Start runs a program and waits until it prints a line that begins with READY.
// The process is killed, with its process group, when the test ends.
func Start(t testing.TB, path string, options ...Option) *Process {
	t.Helper()
	var s starting
	for _, option := range options {
		option(&s)
	}
	argv := append([]string{path}, s.args...)
	var cmd *exec.Cmd
	if s.tree != "" {
		dir := s.dir
		if dir == "" {
			dir = "/"
		}
		cmd = treeCommand(Tree(t, s.tree), dir, []string{cacheDir(t)}, argv...)
	} else {
		cmd = exec.Command(path, s.args...)
		cmd.Dir = s.dir
		cmd.Env = cleanEnv()
	}
	cmd.Env = append(cmd.Env, s.env...)
	attr := &syscall.SysProcAttr{
		Cloneflags: s.cloneflags,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    !s.setsid,
		Setsid:     s.setsid,
	}
	if s.cloneflags&unix.CLONE_NEWUSER != 0 {
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if s.attr != nil {
		s.attr(attr)
	}
	cmd.SysProcAttr = attr

	p := &Process{t: t, cmd: cmd, pidfd: -1, news: make(chan struct{})}
	if err := p.start(); err != nil {
		t.Fatalf("start %s: %v", strings.Join(argv, " "), err)
	}
	t.Cleanup(func() {
		p.Stop()
		if t.Failed() {
			p.logOutput()
		}
	})
	if !s.unready {
		p.Line("^READY", Timeout)
	}
	return p
}

// starter is the one thread that starts processes: the kernel sends a child its
// parent-death signal when the *thread* that made it ends (prctl(2)), and tests
// that use ptrace end threads. This one never ends.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

func (p *Process) start() error {
	// One pipe for both streams keeps their lines in order. The read end is
	// ours, so that cmd.Wait does not close it under the reader.
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	p.cmd.Stdout, p.cmd.Stderr = in, in
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return errors.Join(err, out.Close(), in.Close())
	}
	done := make(chan error)
	starter() <- func() { done <- p.cmd.Start() }
	err = <-done
	if closeErr := in.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return errors.Join(err, out.Close())
	}
	p.pid = p.cmd.Process.Pid
	go p.collect(out)
	p.pidfd, err = unix.PidfdOpen(p.pid, 0)
	if err != nil {
		p.Stop()
		return fmt.Errorf("pidfd_open: %w", err)
	}
	return nil
}

func (p *Process) collect(out *os.File) {
	defer out.Close()
	scanner := bufio.NewScanner(out)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		p.change(func() { p.lines = append(p.lines, scanner.Text()) })
	}
	// A line longer than the buffer ends the scan, but must not block the program.
	_, _ = io.Copy(io.Discard, out)
	p.change(func() { p.eof = true })
}

func (p *Process) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.news)
	p.news = make(chan struct{})
}

// PID gives the process's number as the test sees it.
func (p *Process) PID() int { return p.pid }

// Send writes a line to the program's standard input.
func (p *Process) Send(line string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		p.t.Fatalf("send %q to process %d: %v\n%s", line, p.pid, err, p.tail())
	}
}

// CloseInput closes the program's standard input; most targets end then.
func (p *Process) CloseInput() { _ = p.stdin.Close() }

// Line gives the next line that the regular expression matches, and steps over
// everything before it: see Expect for lines of independent threads. It ends the test if none comes within the timeout.
func (p *Process) Line(match string, timeout time.Duration) string {
	p.t.Helper()
	line, err := p.line(regexp.MustCompile(match), timeout)
	if err != nil {
		p.t.Fatalf("process %d: no line matches %q: %v\n%s", p.pid, match, err, p.tail())
	}
	return line
}

func (p *Process) line(match *regexp.Regexp, timeout time.Duration) (string, error) {
	return p.lineFrom(&p.next, match, timeout)
}

// lineFrom gives the next line from *next on that matches, and moves *next behind
// it. p.mu guards *next.
func (p *Process) lineFrom(next *int, match *regexp.Regexp, timeout time.Duration) (string, error) {
	deadline := time.After(timeout)
	for {
		p.mu.Lock()
		for *next < len(p.lines) {
			line := p.lines[*next]
			*next++
			if match.MatchString(line) {
				p.mu.Unlock()
				return line, nil
			}
		}
		eof, news := p.eof, p.news
		p.mu.Unlock()
		if eof {
			return "", errors.New("it closed its output")
		}
		select {
		case <-news:
		case <-deadline:
			return "", fmt.Errorf("none within %v", timeout)
		}
	}
}

// Expect is for a line that another thread prints than the one that answers
// questions, so that it may come before an answer or after it, and Ask or Line
// may step over it. It must be called before anything can make the program print
// that line. The function that it gives waits for the first line since then that
// the regular expression matches; called again, for the next one.
func (p *Process) Expect(match string) (line func() string) {
	p.t.Helper()
	expr := regexp.MustCompile(match)
	p.mu.Lock()
	next := len(p.lines)
	p.mu.Unlock()
	return func() string {
		p.t.Helper()
		line, err := p.lineFrom(&next, expr, Timeout)
		if err != nil {
			p.t.Fatalf("process %d: no line matches %q: %v\n%s", p.pid, match, err, p.tail())
		}
		return line
	}
}

// Ask sends a line and gives the next line of output after it that the regular
// expression matches.
func (p *Process) Ask(question, match string) string {
	p.t.Helper()
	p.mu.Lock()
	p.next = len(p.lines)
	p.mu.Unlock()
	p.Send(question)
	return p.Line(match, Timeout)
}

// Lines gives everything that the program has printed so far.
func (p *Process) Lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.lines)
}

// Exited waits until the process ends, at most for the timeout, and reports
// whether it did. It leaves the process to be reaped by Stop, and takes no
// ptrace stop away from a tracer in this process, as a wait would.
func (p *Process) Exited(timeout time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	deadline := time.Now().Add(timeout)
	for {
		n, err := unix.Poll(fds, max(0, int(time.Until(deadline).Milliseconds())))
		if err != unix.EINTR {
			return n == 1
		}
	}
}

// Wait waits until the process ends by itself and gives how it ended. It ends
// the test if that takes longer than the timeout.
func (p *Process) Wait(timeout time.Duration) syscall.WaitStatus {
	p.t.Helper()
	if !p.Exited(timeout) {
		p.t.Fatalf("process %d still runs after %v\n%s", p.pid, timeout, p.tail())
	}
	return p.Stop()
}

// Stop kills the process and its process group, waits for its end and gives how
// it ended. Again is fine.
func (p *Process) Stop() syscall.WaitStatus {
	p.stop.Do(func() {
		// Not reaped yet, so the numbers are still its own.
		_ = syscall.Kill(-p.pid, syscall.SIGKILL)
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
		_ = p.stdin.Close()
		_ = p.cmd.Wait() // says how it ended, which is in ProcessState
		if state := p.cmd.ProcessState; state != nil {
			p.status = state.Sys().(syscall.WaitStatus)
		}
		if p.pidfd >= 0 {
			_ = unix.Close(p.pidfd)
			p.pidfd = -1
		}
	})
	return p.status
}

func (p *Process) tail() string {
	lines := p.Lines()
	const most = 40
	if len(lines) > most {
		lines = append([]string{fmt.Sprintf("(%d earlier lines)", len(lines)-most)}, lines[len(lines)-most:]...)
	}
	return strings.Join(lines, "\n")
}

func (p *Process) logOutput() {
	p.t.Logf("output of process %d (%s):\n%s", p.pid, p.cmd, p.tail())
}
