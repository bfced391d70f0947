package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// stripped makes a copy of the calculator without .symtab, and its debug file.
// tool is run in the directory of both: it may put them together again.
func stripped(t testing.TB, tool func(dir string, run func(name string, args ...string))) (exe, debug string) {
	t.Helper()
	testtarget.Need(t, "objcopy")
	exe = testtarget.Copy(t, calcTarget(t, "gcc", "-O1", "-Wl,--build-id=sha1"))
	dir := filepath.Dir(exe)
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	run("objcopy", "--only-keep-debug", "calc", "calc.debug")
	run("objcopy", "--strip-all", "calc")
	if tool != nil {
		tool(dir, run)
	}
	return exe, filepath.Join(dir, "calc.debug")
}

// TestDebugFiles: the static functions of a stripped program are found in its
// debug file, and only in its own.
func TestDebugFiles(t *testing.T) {
	t.Parallel()
	patch := cPatch(t, replacing("calc_a.c:same_name", 1000))
	found := func(t *testing.T, exe string, args ...string) {
		t.Helper()
		p := testtarget.Start(t, exe)
		answers(t, p, "a_same", 5, 105)
		applyOne(t, p.PID(), append(args, patch)...)
		answers(t, p, "a_same", 5, 1005)
		revert(t, p.PID())
		answers(t, p, "a_same", 5, 105)
	}
	notFound := func(t *testing.T, exe string, args ...string) refusal {
		t.Helper()
		p := testtarget.Start(t, exe)
		before := testtarget.TextSnapshot(t, p.PID())
		e := applyRefused(t, p.PID(), 4, "no-symbol", append(args, patch)...)
		identical(t, before, p.PID())
		answers(t, p, "a_same", 5, 105)
		return e
	}
	// store puts a debug file into a directory by build-id.
	store := func(t *testing.T, id, debug string) string {
		t.Helper()
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, ".build-id", id[:2]), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(debug, filepath.Join(dir, ".build-id", id[:2], id[2:]+".debug")); err != nil {
			t.Fatal(err)
		}
		return dir
	}

	t.Run("none", func(t *testing.T) {
		t.Parallel()
		exe, debug := stripped(t, nil)
		if err := os.Remove(debug); err != nil {
			t.Fatal(err)
		}
		if e := notFound(t, exe); !strings.Contains(e.Hint, "stripped") {
			t.Errorf("the hint is %q", e.Hint)
		}
	})
	t.Run("build-id", func(t *testing.T) {
		t.Parallel()
		exe, debug := stripped(t, nil)
		dir := store(t, buildID(t, exe), debug)
		notFound(t, exe)
		found(t, exe, "--debug-dir", dir)
	})
	t.Run("of another build", func(t *testing.T) {
		t.Parallel()
		exe, _ := stripped(t, nil)
		other := testtarget.Copy(t, calcTarget(t, "gcc", "-O2", "-Wl,--build-id=sha1"))
		if e := notFound(t, exe, "--debug-dir", store(t, buildID(t, exe), other)); !strings.Contains(e.Hint, "is not used: its build-id is") {
			t.Errorf("the hint is %q", e.Hint)
		}
	})
	link := func(dir string, run func(string, ...string)) {
		run("objcopy", "--add-gnu-debuglink=calc.debug", "calc")
	}
	t.Run("debug link", func(t *testing.T) {
		t.Parallel()
		exe, _ := stripped(t, link)
		found(t, exe)
	})
	t.Run("debug link in .debug", func(t *testing.T) {
		t.Parallel()
		exe, debug := stripped(t, link)
		dir := filepath.Join(filepath.Dir(exe), ".debug")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(debug, filepath.Join(dir, "calc.debug")); err != nil {
			t.Fatal(err)
		}
		found(t, exe)
	})
	t.Run("debug link with another CRC", func(t *testing.T) {
		t.Parallel()
		exe, debug := stripped(t, link)
		f, err := os.OpenFile(debug, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString("!"); err != nil {
			t.Fatal(err)
		}
		if e := notFound(t, exe); !strings.Contains(e.Hint, "CRC") {
			t.Errorf("the hint is %q", e.Hint)
		}
	})
	t.Run("gnu_debugdata", func(t *testing.T) {
		t.Parallel()
		testtarget.Need(t, "xz")
		exe, _ := stripped(t, func(dir string, run func(string, ...string)) {
			run("xz", "-9", "-k", "calc.debug")
			run("objcopy", "--add-section", ".gnu_debugdata=calc.debug.xz", "calc")
			run("rm", "calc.debug", "calc.debug.xz")
		})
		found(t, exe)
	})
}
