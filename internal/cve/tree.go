package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// env is where everything is.
type env struct {
	cache    string // sources in sources/, the compilers' results in ccache/, work in work/
	hotpatch string
	data     string
	keep     bool
}

// work is the directory of a fix.
func (e *env) work(f fix) string {
	return filepath.Join(e.cache, "work", strings.ReplaceAll(f.name(), " ", "-"))
}

// command runs a program with its output in a log, which is a part of the error.
func command(ctx context.Context, dir string, environ []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), environ...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s in %s: %w\n%s", name, dir, err, tail(out, 12))
	}
	return nil
}

func tail(out []byte, lines int) []byte {
	all := bytes.Split(bytes.TrimRight(out, "\n"), []byte("\n"))
	return bytes.Join(all[max(0, len(all)-lines):], []byte("\n"))
}

// version without the epoch, as file names have it.
func (s *source) fileVersion() string {
	_, v, found := strings.Cut(s.Version, ":")
	if !found {
		v = s.Version
	}
	return v
}

// unpack makes a tree of the state before the fix: the package's series of patches is
// applied up to the one before the fix's first.
func (e *env) unpack(ctx context.Context, f fix, tree string) error {
	if err := os.RemoveAll(tree); err != nil {
		return err
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	v := f.fileVersion()
	upstream := v[:strings.LastIndexByte(v, '-')]
	orig, err := filepath.Glob(filepath.Join(e.cache, "sources", f.Name+"_"+upstream+".orig.tar.*"))
	if err != nil || len(orig) == 0 {
		return fmt.Errorf("no source of %s %s (scripts/cve gets it)", f.Name, upstream)
	}
	debian := filepath.Join(e.cache, "sources", f.Name+"_"+v+".debian.tar.xz")
	if err := command(ctx, tree, nil, "tar", "-xf", orig[0], "--strip-components=1"); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(tree, "debian")); err != nil {
		return err
	}
	if err := command(ctx, tree, nil, "tar", "-xf", debian); err != nil {
		return err
	}
	series, err := os.ReadFile(filepath.Join(tree, "debian", "patches", "series"))
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(series), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == f.Patches[0] {
			return nil
		} else if line != "" {
			if err := applyTo(ctx, tree, line); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("the series of %s has no %s", f.Name, f.Patches[0])
}

// applyTo applies one of the package's patches.
func applyTo(ctx context.Context, tree, patch string) error {
	return command(ctx, tree, nil, "patch", "-p1", "-s", "-f", "--no-backup-if-mismatch", "-i", filepath.Join("debian", "patches", patch))
}

// flags is what the build commands find in the environment: the distribution's, those of a
// section for each function and variable, and one time for all that has stamps.
const flags = `F="$(dpkg-buildflags --get CFLAGS | sed 's,-ffile-prefix-map=[^ ]*,,') -ffile-prefix-map=$PWD=. $EXTRA"
P="$(dpkg-buildflags --get CPPFLAGS)" L="$(dpkg-buildflags --get LDFLAGS)"
export SOURCE_DATE_EPOCH=1700000000
`

func (f fix) script(commands ...string) string {
	return "set -e\n" + flags + strings.Join(commands, "\n")
}

// build configures and builds a tree. The compilers' results are cached, by ccache: the
// same tree in the same place is compiled once.
func (e *env) build(ctx context.Context, f fix, tree, extra string) error {
	return command(ctx, tree, []string{"EXTRA=" + extra, "PATH=/usr/lib/ccache:" + os.Getenv("PATH"), "CCACHE_DIR=" + filepath.Join(e.cache, "ccache"), "CCACHE_MAXSIZE=2G"},
		"bash", "-c", f.script(f.Configure, f.Build))
}

// sections are what the judge adds to the flags.
const sections = "-ffunction-sections -fdata-sections"

// trees builds everything that a fix needs but the patch: base is the stripped image
// before the fix; pre and post are the functions of both states.
func (e *env) trees(ctx context.Context, f fix) (base string, pre, post functions, err error) {
	work := e.work(f)
	tree := filepath.Join(e.cache, "tree", f.Name) // the same for all: paths are in objects
	defer os.RemoveAll(tree)
	build := func(extra string, patched bool) error {
		if err := e.unpack(ctx, f, tree); err != nil {
			return err
		}
		if patched {
			for _, p := range f.Patches {
				if err := applyTo(ctx, tree, p); err != nil {
					return err
				}
			}
		}
		return e.build(ctx, f, tree, extra)
	}
	if err = build("", false); err != nil {
		return
	}
	image, err := filepath.EvalSymlinks(filepath.Join(tree, f.Image))
	if err != nil {
		return
	}
	base = filepath.Join(work, filepath.Base(f.Image))
	if err = command(ctx, work, nil, "strip", "-o", base, image); err != nil {
		return
	}
	if err = build(sections, false); err != nil {
		return
	}
	if pre, err = functionsOf(tree); err != nil {
		return
	}
	if err = build(sections, true); err != nil {
		return
	}
	post, err = functionsOf(tree)
	return
}
