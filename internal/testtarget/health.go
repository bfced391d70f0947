package testtarget

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Healthy ends the test unless the process lives, nobody traces it and none of
// its threads is stopped.
func (p *Process) Healthy(t testing.TB) {
	t.Helper()
	if err := settled(p.pid); err != nil {
		t.Fatalf("process %d: %v\n%s", p.pid, err, p.tail())
	}
}

// CheckHealthy is Healthy for a process that the test did not start.
func CheckHealthy(t testing.TB, pid int) {
	t.Helper()
	if err := settled(pid); err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
}

// settled gives what ails a process for longer than a second: a thread that was
// resumed may still be on its way out of its stop.
func settled(pid int) error {
	deadline := time.Now().Add(time.Second)
	for {
		err := health(pid)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func health(pid int) error {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	alive := false
	for _, task := range tasks {
		fields, err := status(filepath.Join("/proc", strconv.Itoa(pid), "task", task.Name()))
		if os.IsNotExist(err) {
			continue // it ended meanwhile
		}
		if err != nil {
			return err
		}
		state := fields["State"]
		switch state[:min(1, len(state))] {
		case "Z", "X":
			continue
		case "t", "T":
			return fmt.Errorf("thread %s is in state %q", task.Name(), state)
		}
		if tracer := fields["TracerPid"]; tracer != "0" {
			return fmt.Errorf("thread %s is traced by %s", task.Name(), tracer)
		}
		alive = true
	}
	if !alive {
		return fmt.Errorf("it is dead")
	}
	return nil
}

// status reads a status file of proc(5).
func status(dir string) (map[string]string, error) {
	content, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return nil, err
	}
	fields := make(map[string]string)
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields, nil
}
