package rebuild

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"hotpatch/internal/fault"
)

// execute runs the build command, whose output goes to a file in the work directory.
// done says what has been done so far.
func (b *rebuilder) execute(ctx context.Context, command, env []string, logName string, done func() string) error {
	log, err := os.Create(filepath.Join(b.Work, logName))
	if err != nil {
		return workFault(err)
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	if path, err := lookPath(command[0], env); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = b.root, append(env, "PWD="+b.root), log, log
	killed(cmd)
	b.tell("building: %s", strings.Join(command, " "))
	start := time.Now()
	ended := make(chan struct{})
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				b.tell("building: %s after %d s", done(), int(time.Since(start).Seconds()))
			}
		}
	}()
	err = cmd.Run()
	close(ended)
	<-reported
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return &fault.Error{Kind: fault.Failed, Code: "build-failed", What: "the build has failed", Where: strings.Join(command, " "), Why: lastLines(log.Name(), 12), Err: err,
			Hint: "with --keep-work DIR the whole output is in DIR"}
	}
	b.tell("built: %s in %.1f s", done(), time.Since(start).Seconds())
	return nil
}

// lookPath finds a program on the PATH of an environment.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			for _, d := range filepath.SplitList(v) {
				path := filepath.Join(d, name)
				if st, err := os.Stat(path); err == nil && !st.IsDir() && st.Mode()&0o111 != 0 {
					return path, nil
				}
			}
		}
	}
	return "", exec.ErrNotFound
}

// lastLines gives the end of a log in one line.
func lastLines(path string, n int) string {
	data, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}
