package rebuild

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// insideName is what the process that builds is called: argv[0].
const insideName = "hotpatch-rebuild"

// message is what the process that builds says to the one that has started it, one in
// a line.
type message struct {
	Tell   string         `json:",omitempty"`
	Ready  bool           `json:",omitempty"` // it has the namespace that it needs
	Report *Report        `json:",omitempty"`
	Faults []*fault.Error `json:",omitempty"`
	Error  string         `json:",omitempty"` // another error
}

// Run builds a tree before and after a change, in a process of its own. r.Copy is the
// copy of the tree. tell is told what is being done. Faults: see docs/limits.md,
// "Building the source".
func Run(ctx context.Context, r Request, tell func(format string, args ...any)) (*Report, error) {
	r.Private = true
	report, ready, err := start(ctx, r, tell)
	if ready || ctx.Err() != nil {
		return report, err
	}
	r.Private = false
	if err := movable(r); err != nil {
		return nil, err
	}
	tell("no mount namespace can be had: building at another place, with the names of files mapped")
	report, _, err = start(ctx, r, tell)
	return report, err
}

// start starts the process. ready is false if it could not get its namespace.
func start(ctx context.Context, r Request, tell func(format string, args ...any)) (report *Report, ready bool, err error) {
	data, err := json.Marshal(r)
	if err != nil {
		return nil, false, err
	}
	if err := os.WriteFile(filepath.Join(r.Work, "request"), data, 0o600); err != nil {
		return nil, true, workFault(err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, true, workFault(err)
	}
	out, outWriter, err := os.Pipe()
	if err != nil {
		return nil, true, workFault(err)
	}
	defer out.Close()
	alive, aliveWriter, err := os.Pipe()
	if err != nil {
		_ = outWriter.Close()
		return nil, true, workFault(err)
	}
	defer aliveWriter.Close()
	cmd := exec.Command(self)
	cmd.Args = []string{insideName, filepath.Join(r.Work, "request")}
	cmd.Env = r.Env
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{outWriter, alive}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if r.Private {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS
		if os.Geteuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
			// The mount is made before the program runs with no right to it any more.
			cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
		}
	}
	err = cmd.Start()
	_, _ = outWriter.Close(), alive.Close()
	if err != nil {
		return nil, false, workFault(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = aliveWriter.Close() })
	defer stop()
	var end *message
	for in := json.NewDecoder(out); ; {
		var m message
		if err := in.Decode(&m); err != nil {
			break
		}
		switch {
		case m.Ready:
			ready = true
		case m.Tell != "":
			tell("%s", m.Tell)
		default:
			end = &m
		}
	}
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, ready, ctx.Err()
	case end == nil:
		return nil, ready, workFault(cmp.Or(err, errors.New("the process that builds has ended")))
	case len(end.Faults) > 0:
		return nil, ready, fault.List(end.Faults).ErrOrNil()
	case end.Error != "":
		return nil, ready, workFault(errors.New(end.Error))
	}
	return end.Report, ready, nil
}

// Main is the process that builds, if this program was started as that; then it gives
// the exit status to end with, and true.
func Main() (status int, called bool) {
	if os.Args[0] != insideName || len(os.Args) != 2 {
		return 0, false
	}
	out, alive := os.NewFile(3, "messages"), os.NewFile(4, "alive")
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	signal.Ignore(unix.SIGPIPE)
	say := json.NewEncoder(out)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		// It ends when whoever has started this does.
		_, _ = io.Copy(io.Discard, bufio.NewReader(alive))
		cancel()
	}()
	report, err := inside(ctx, os.Args[1], func(m message) { _ = say.Encode(m) })
	end := message{Report: report}
	if err != nil {
		end = message{Error: err.Error()}
		var list fault.List
		var one *fault.Error
		switch {
		case errors.As(err, &list):
			end.Faults = list
		case errors.As(err, &one):
			end.Faults = fault.List{one}
		}
		for _, f := range end.Faults {
			if f.Err != nil { // an error does not go through JSON, its text does
				f.Why, f.Err = strings.TrimPrefix(f.Why+": "+f.Err.Error(), ": "), nil
			}
		}
	}
	_ = say.Encode(end)
	return 0, true
}

func inside(ctx context.Context, request string, say func(message)) (*Report, error) {
	data, err := os.ReadFile(request)
	if err != nil {
		return nil, err
	}
	var r Request
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	root := r.Copy()
	if r.Private {
		root = r.Tree
		if err := mountCopy(&r); err != nil {
			return nil, err
		}
		if err := dropAmbient(); err != nil {
			return nil, err
		}
	}
	if err := os.Chdir(root); err != nil {
		return nil, err
	}
	say(message{Ready: true})
	return run(ctx, r, func(format string, args ...any) { say(message{Tell: fmt.Sprintf(format, args...)}) })
}

// dropAmbient keeps what the build runs from having rights that its user has not.
func dropAmbient() error {
	if os.Geteuid() == 0 {
		return nil
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_CAP_AMBIENT: %w", err)
	}
	return nil
}

// killed makes a command end with all that it has started when its context does.
func killed(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
}
