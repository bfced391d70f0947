package testtarget

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// runTimeout ends a hotpatch that hangs. No command takes a tenth of it.
const runTimeout = 2 * time.Minute

var builtHotpatch struct {
	once   sync.Once
	path   string
	output []byte
	err    error
}

// Hotpatch builds ./cmd/hotpatch, once for a test binary, and gives its path.
// With HOTPATCH_TEST_RACE=1 it is built with the race detector.
func Hotpatch(t testing.TB) string {
	t.Helper()
	root, cache := Root(t), cacheDir(t)
	b := &builtHotpatch
	b.once.Do(func() { b.path, b.output, b.err = buildHotpatch(root, cache) })
	if b.err != nil {
		t.Fatalf("build hotpatch: %v\n%s", b.err, b.output)
	}
	return b.path
}

// buildHotpatch puts the binary under a name made of its content, so that tests
// of different versions of the source can run at the same time.
func buildHotpatch(root, cache string) (path string, output []byte, err error) {
	builds := filepath.Join(cache, "builds")
	if err := os.MkdirAll(builds, 0o755); err != nil {
		return "", nil, err
	}
	work, err := os.MkdirTemp(builds, ".hotpatch-")
	if err != nil {
		return "", nil, err
	}
	defer os.RemoveAll(work)
	args, env := []string{"build", "-o", filepath.Join(work, "hotpatch")}, append(os.Environ(), "CGO_ENABLED=0") // as README.md says
	if os.Getenv("HOTPATCH_TEST_RACE") == "1" {
		args, env = append(args, "-race"), append(os.Environ(), "CGO_ENABLED=1")
	}
	cmd := exec.Command("go", append(args, "./cmd/hotpatch")...)
	cmd.Dir, cmd.Env = root, env
	if output, err = cmd.CombinedOutput(); err != nil {
		return "", output, err
	}
	binary, err := os.ReadFile(filepath.Join(work, "hotpatch"))
	if err != nil {
		return "", nil, err
	}
	sum := sha256.Sum256(binary)
	dir := filepath.Join(builds, "hotpatch-"+hex.EncodeToString(sum[:8]))
	path = filepath.Join(dir, "hotpatch")
	now := time.Now()
	if os.Chtimes(dir, now, now) == nil {
		return path, nil, nil // already there
	}
	prune(builds)
	if output, err = Install(filepath.Join(work, "hotpatch")); err != nil {
		return "", output, err
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return "", nil, err
	}
	if err := os.Rename(work, dir); err != nil {
		if _, statErr := os.Stat(path); statErr != nil {
			return "", nil, err
		}
	}
	return path, nil, nil
}

// Install puts a copy of a program in its place, as whoever installs it does: the pages of a
// file that the linker has written are mapped more slowly. Another program copies it, since
// a child that this one starts meanwhile would keep the file open for writing, which then
// cannot be run.
func Install(path string) (output []byte, err error) {
	linked := path + ".linked"
	if err := os.Rename(path, linked); err != nil {
		return nil, err
	}
	if output, err = exec.Command("install", "-m", "755", linked, path).CombinedOutput(); err != nil {
		return output, err
	}
	return nil, os.Remove(linked)
}

// Result is what one run of hotpatch gave.
type Result struct {
	Args   []string
	Stdout string
	Stderr string
	Exit   int // exit status; 128 + the signal's number if a signal ended it
}

// String gives the run as a person would have seen it.
func (r Result) String() string {
	return fmt.Sprintf("$ hotpatch %s\n%s%s(exit %d)", strings.Join(r.Args, " "), r.Stdout, r.Stderr, r.Exit)
}

// Run runs hotpatch. Whatever its exit status is, that is a result; the test
// ends only if it cannot be run or does not end.
func Run(t testing.TB, args ...string) Result {
	t.Helper()
	return RunIn(t, "", nil, args...)
}

// RunIn is Run with a working directory and further settings of the environment.
func RunIn(t testing.TB, dir string, env []string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, Hotpatch(t), args...)
	cmd.Dir = dir
	cmd.Env = append(append(cleanEnv(), "NO_COLOR=1"), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Args: args, Stdout: stdout.String(), Stderr: stderr.String()}
	if ctx.Err() != nil {
		t.Fatalf("hotpatch did not end within %v\n%v", runTimeout, r)
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		r.Exit = exit.ExitCode()
	case errors.As(err, &exit):
		r.Exit = 128 + int(exit.Sys().(syscall.WaitStatus).Signal())
	case err != nil:
		t.Fatalf("%v\n%v", err, r)
	}
	return r
}

// RunJSON runs hotpatch with --json and decodes standard output, which must be
// exactly one object, into v.
func RunJSON(t testing.TB, v any, args ...string) Result {
	t.Helper()
	r := Run(t, append(append([]string{}, args...), "--json")...)
	decoder := json.NewDecoder(strings.NewReader(r.Stdout))
	if err := decoder.Decode(v); err != nil {
		t.Fatalf("standard output is not JSON: %v\n%v", err, r)
	}
	if _, err := decoder.Token(); err != io.EOF {
		t.Fatalf("more than one JSON value on standard output\n%v", r)
	}
	return r
}
