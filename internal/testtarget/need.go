package testtarget

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Strict reports whether a missing tool must fail a test: $CI is set, or
// $HOTPATCH_TEST_ALL is 1.
func Strict() bool {
	return os.Getenv("CI") != "" || os.Getenv("HOTPATCH_TEST_ALL") == "1"
}

// Unavailable ends the test because something outside of the project is not
// there: it skips, or fails if Strict.
func Unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if Strict() {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Need ends the test (see Unavailable) if a tool is not in $PATH.
func Need(t testing.TB, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		Unavailable(t, "%s is not installed; scripts/test installs what the tests need", tool)
	}
}

// NeedFlags ends the test (see Unavailable) if a compiler cannot make a program
// with these flags, such as -m32, for which a library may be missing.
func NeedFlags(t testing.TB, compiler string, flags ...string) {
	t.Helper()
	Need(t, compiler)
	args := append([]string{"-x", "c", "-", "-o", filepath.Join(t.TempDir(), "program")}, flags...)
	cmd := exec.Command(compiler, args...)
	cmd.Stdin = strings.NewReader("#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		Unavailable(t, "%s makes no programs with %q: %v\n%s", compiler, flags, err, out)
	}
}

// Need32Bit skips the test if the kernel runs no 32-bit programs (built without
// CONFIG_IA32_EMULATION, or booted with ia32_emulation=0), which no installation can
// mend; execve(2) then fails with ENOEXEC. A missing compiler is as in NeedFlags.
func Need32Bit(t testing.TB) {
	t.Helper()
	NeedFlags(t, "gcc", "-m32")
	path := Build(t, Spec{Flags: []string{"-m32"}, Files: map[string]string{"nothing.c": "int main(void) { return 0; }\n"}})
	if err := exec.Command(path).Run(); errors.Is(err, syscall.ENOEXEC) {
		t.Skipf("this kernel runs no 32-bit programs: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
}

// NeedRoot ends the test (see Unavailable) if it does not run as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Unavailable(t, "this test needs root, and the effective user id is %d", os.Geteuid())
	}
}

var findRoot = sync.OnceValues(func() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", os.ErrNotExist
		}
	}
	return "", err
})

// Root gives the root of the source tree: the folder of go.mod at or above the
// test's working directory, which go test sets to the package's folder.
func Root(t testing.TB) string {
	t.Helper()
	root, err := findRoot()
	if err != nil {
		t.Fatalf("no go.mod at or above the working directory: %v", err)
	}
	return root
}

// cacheDir gives $HOTPATCH_TEST_CACHE, or hotpatch-tests in the user's cache
// directory, and makes it.
func cacheDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("HOTPATCH_TEST_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			t.Fatalf("no cache directory, set HOTPATCH_TEST_CACHE: %v", err)
		}
		dir = filepath.Join(base, "hotpatch-tests")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
