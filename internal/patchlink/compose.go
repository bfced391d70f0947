package patchlink

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// compose links objects into a shared object at path out, which is there whole
// or not at all. libraries are sonames of what undefined symbols may be from; more
// are names as for -l, or paths.
func compose(ctx context.Context, objects []*object, libraries, more []string, out string) error {
	driver, err := findDriver()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "hotpatch-link-")
	if err != nil {
		return fmt.Errorf("make a temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	// No start files: a patch has no constructors but those of its own new
	// variables, and .eh_frame_hdr announces its unwind tables.
	args := []string{"-shared", "-nostartfiles", "-o", "patch.so",
		"-Wl,--eh-frame-hdr", "-Wl,--build-id=sha1", "-Wl,-z,now", "-Wl,-z,relro", "-Wl,-z,noexecstack", "-Wl,-z,text", "-Wl,--as-needed"}
	for i, o := range objects {
		name := fmt.Sprintf("%d.o", i)
		if err := os.WriteFile(filepath.Join(dir, name), o.encode(), 0o600); err != nil {
			return err
		}
		args = append(args, name)
	}
	for _, lib := range libraries {
		// The linker then knows the versions of the symbols. Where a library is
		// not installed here, its symbols get none.
		path, err := exec.CommandContext(ctx, driver, "-print-file-name="+lib).Output()
		if p := strings.TrimSpace(string(path)); err == nil && filepath.IsAbs(p) && !strings.HasPrefix(lib, "ld-linux") {
			args = append(args, p)
		}
	}
	for _, lib := range more {
		if !filepath.IsAbs(lib) {
			lib = "-l" + lib
		}
		args = append(args, lib)
	}
	cmd := exec.CommandContext(ctx, driver, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &fault.Error{Kind: fault.Failed, Code: "link", What: "cannot link the patch", Where: driver,
			Why: strings.TrimSpace(strings.ReplaceAll(lastLines(said.String()), dir+"/", "")), Err: err}
	}
	return deliver(filepath.Join(dir, "patch.so"), out)
}

// findDriver finds a compiler to link with.
func findDriver() (string, error) {
	for _, name := range []string{"gcc", "cc", "clang"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", &fault.Error{Kind: fault.Failed, Code: "no-linker", What: "cannot link the patch",
		Why: "none of gcc, cc and clang is on PATH", Hint: "install a compiler where patches are built"}
}

// deliver copies a file to where it is wanted, under a temporary name first.
func deliver(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".hotpatch-*")
	if err != nil {
		return unwritable(to, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(f.Name(), to)
	}
	if err != nil {
		return unwritable(to, err)
	}
	return nil
}

// CheckOutput refuses a path at which no patch can be written, before anything is done for one. The
// fault is "patch-not-written".
func CheckOutput(path string) error {
	dir := filepath.Dir(path)
	st, err := os.Stat(dir)
	switch {
	case err != nil:
	case !st.IsDir():
		err = &os.PathError{Op: "open", Path: dir, Err: unix.ENOTDIR}
	default:
		err = unix.Access(dir, unix.W_OK)
	}
	if st, e := os.Stat(path); err == nil && e == nil && st.IsDir() {
		err = &os.PathError{Op: "write", Path: path, Err: unix.EISDIR}
	}
	if err != nil {
		return unwritable(path, err)
	}
	return nil
}

func unwritable(path string, err error) error {
	return &fault.Error{Kind: fault.Failed, Code: "patch-not-written", What: "cannot write the patch library", Where: path, Err: err}
}

// lastLines bounds what a linker says.
func lastLines(s string) string {
	const most = 2000
	if len(s) > most {
		s = "..." + s[len(s)-most:]
	}
	return s
}
