package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program that runs the code to be patched.
type process struct {
	cmd   *exec.Cmd
	pid   int
	image string   // the base, as it is mapped
	port  string   // of 127.0.0.1
	ports []string // more of them
	dir   string
	log   *os.File
	more  []*exec.Cmd // other programs that it needs
}

// scenario is a way to run a base and to ask it something.
type scenario struct {
	start func(context.Context, *process) error
	ask   func(context.Context, *process) (string, error) // reaches the changed code; never kills it
}

// show applies the patch to a process, shows that it is in force, and takes it out.
func (e *env) show(ctx context.Context, o *outcome, base, patch string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	s, ok := scenarios[o.Show]
	if !ok {
		return fmt.Errorf("there is no scenario %q to show it", o.Show)
	}
	p := &process{image: base, dir: e.work(o.fix)}
	defer p.stop()
	for range 4 {
		p.ports = append(p.ports, freePort())
	}
	p.port = p.ports[0]
	if p.log, err = os.Create(filepath.Join(p.dir, "log")); err != nil {
		return err
	}
	defer p.log.Close()
	if err := s.start(ctx, p); err != nil {
		return p.explain(fmt.Errorf("start: %w", err))
	}
	expect := func(when, want string) error {
		got, err := s.ask(ctx, p)
		if err != nil {
			return p.explain(fmt.Errorf("%s: %w", when, err))
		}
		if want == "*" { // whatever it is, it stays so
			o.Before, o.After, want = got, got, got
		}
		if got != want {
			return p.explain(fmt.Errorf("%s the answer is %q instead of %q", when, got, want))
		}
		return nil
	}
	if err := expect("before", o.Before); err != nil {
		return err
	}
	sum, err := p.code()
	if err != nil {
		return err
	}
	pid := strconv.Itoa(p.pid)
	var applied struct {
		Patches []struct {
			PauseUS float64 `json:"pause_us"`
		}
	}
	if err := e.do(ctx, p.dir, &applied, "apply", "--pid", pid, patch); err != nil {
		return p.explain(err)
	}
	if len(applied.Patches) == 1 {
		o.Pause = applied.Patches[0].PauseUS
	}
	if err := expect("patched", o.After); err != nil {
		return err
	}
	o.Shown = fmt.Sprintf("%s, then %s", o.Before, o.After)
	if o.Before == o.After {
		entered, err := e.entered(ctx, p, s)
		if err != nil {
			return p.explain(err)
		}
		o.Shown = "new " + entered + " entered"
	}
	if err := e.do(ctx, p.dir, nil, "verify", "--pid", pid); err != nil {
		return p.explain(err)
	}
	if err := e.do(ctx, p.dir, nil, "revert", "--pid", pid, "--all"); err != nil {
		return p.explain(err)
	}
	if now, err := p.code(); err != nil || now != sum {
		return p.explain(fmt.Errorf("after the revert the code in memory is not what it was (%v)", err))
	}
	return expect("reverted", o.Before)
}

// entered shows that a new function is entered: gdb stops the process there, while it is
// asked. It gives the name.
func (e *env) entered(ctx context.Context, p *process, s scenario) (string, error) {
	var list struct {
		Processes []struct {
			Patches []struct {
				Functions []struct {
					Function, New string
				}
			}
		}
	}
	if err := e.do(ctx, p.dir, &list, "list", "--pid", strconv.Itoa(p.pid)); err != nil {
		return "", err
	}
	if len(list.Processes) != 1 || len(list.Processes[0].Patches) != 1 {
		return "", errors.New("not one patch is listed")
	}
	functions := list.Processes[0].Patches[0].Functions
	args := []string{"-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off", "-p", strconv.Itoa(p.pid)}
	for _, f := range functions {
		args = append(args, "-ex", "tbreak *"+f.New)
	}
	args = append(args, "-ex", `printf "ready\n"`, "-ex", "continue", "-ex", `printf "at %#lx\n", $pc`, "-ex", "detach")
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var out bytes.Buffer
	gdb := exec.CommandContext(ctx, "gdb", args...)
	gdb.Stdout, gdb.Stderr = &out, &out
	gdb.Cancel = func() error { return gdb.Process.Signal(syscall.SIGINT) } // it detaches then
	if err := gdb.Start(); err != nil {
		return "", err
	}
	asked := make(chan error, 1)
	go func() {
		_, err := s.ask(ctx, p)
		asked <- err
	}()
	waited := gdb.Wait()
	err := <-asked
	for _, f := range functions {
		if strings.Contains(out.String(), "at "+f.New+"\n") {
			return f.Function, err
		}
	}
	return "", fmt.Errorf("no new function was entered (%w)\n%s", errors.Join(waited, err), tail(out.Bytes(), 12))
}

// code is a checksum of the image's code in memory.
func (p *process) code() (sum [32]byte, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", p.pid))
	if err != nil {
		return sum, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.pid))
	if err != nil {
		return sum, err
	}
	defer mem.Close()
	h, found := sha256.New(), false
	for line := range strings.SplitSeq(string(maps), "\n") {
		fields := strings.Fields(line)
		if len(fields) != 6 || fields[5] != p.image || !strings.Contains(fields[1], "x") {
			continue
		}
		var from, to uint64
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			return sum, err
		}
		b := make([]byte, to-from)
		if _, err := mem.ReadAt(b, int64(from)); err != nil {
			return sum, err
		}
		h.Write(b)
		found = true
	}
	copy(sum[:], h.Sum(nil))
	if !found {
		return sum, errors.New("the image is not mapped")
	}
	return sum, nil
}

// explain adds the end of the program's own words to an error.
func (p *process) explain(err error) error {
	text, _ := os.ReadFile(p.log.Name())
	return fmt.Errorf("%w\n%s", err, tail(text, 8))
}

// run starts a program in the foreground; the first one is what is patched.
func (p *process) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	if p.cmd == nil {
		p.cmd, p.pid = cmd, cmd.Process.Pid
	} else {
		p.more = append(p.more, cmd)
	}
	return nil
}

// stop ends all that was started.
func (p *process) stop() {
	for _, cmd := range append(p.more, p.cmd) {
		if cmd != nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
		}
	}
}

// write makes a file in the process's directory.
func (p *process) write(name, text string) error {
	return os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644)
}

// listens waits until somebody listens on the ports, which takes a minute at most.
func (p *process) listens(ctx context.Context, ports ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, port := range ports {
		for {
			c, err := net.Dial("tcp", "127.0.0.1:"+port)
			if err == nil {
				c.Close()
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("nobody listens on port %s", port)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "0"
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
