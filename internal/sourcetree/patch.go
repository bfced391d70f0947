package sourcetree

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"

	"hotpatch/internal/fault"
)

// Change is a file that patches change.
type Change struct {
	Path string // relative to the tree
	Post string // a file with the content after the change; empty: it is deleted
	New  bool   // it did not exist
}

// Patch is a file with changes of a source tree.
type Patch struct {
	Path    string
	Strip   int  // directories that are taken off names, as patch(1) -p
	Reverse bool // the tree is changed in the other direction
	Exact   bool // lines around a change must be what the patch says
}

// Changes applies patches to tree, one after the other, as patch(1) does, keeps the
// files that come out of it in the directory store, and makes tree what it was, from
// the equal tree original. Faults "no-patch-program", "hunk-failed", "empty-patch",
// "tree-copy".
func Changes(ctx context.Context, original, tree, store string, patches []Patch) ([]Change, error) {
	before, err := snapshot(tree)
	if err != nil {
		return nil, copyFault(tree, err, nil)
	}
	for _, p := range patches {
		if err := p.Apply(ctx, tree); err != nil {
			return nil, err
		}
	}
	after, err := snapshot(tree)
	if err != nil {
		return nil, copyFault(tree, err, nil)
	}
	var list []Change
	for _, rel := range slices.Sorted(maps.Keys(after)) {
		now, was := after[rel], before[rel]
		_, old := before[rel]
		if now.mode.IsDir() || now == was {
			continue
		}
		c := Change{Path: rel, New: !old, Post: filepath.Join(store, strconv.Itoa(len(list)))}
		if err := os.Rename(filepath.Join(tree, rel), c.Post); err != nil {
			return nil, copyFault(tree, err, nil)
		}
		list = append(list, c)
	}
	list = append(list, deleted(before, after)...)
	if len(list) == 0 {
		return nil, emptyPatch()
	}
	// What patch(1) has made and removed, directories included.
	for _, rel := range slices.Backward(slices.Sorted(maps.Keys(after))) {
		if _, old := before[rel]; !old && after[rel].mode.IsDir() {
			if err := os.Remove(filepath.Join(tree, rel)); err != nil {
				return nil, copyFault(tree, err, nil)
			}
		}
	}
	for _, c := range list {
		if c.New {
			continue
		}
		if err := restore(ctx, original, tree, c.Path); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func emptyPatch() *fault.Error {
	return &fault.Error{Kind: fault.NoChange, Code: "empty-patch", What: "there is nothing to patch", Why: "the patches change no file of the source tree"}
}

func restore(ctx context.Context, original, tree, rel string) error {
	to := filepath.Join(tree, rel)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return copyFault(tree, err, nil)
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--", filepath.Join(original, rel), to).CombinedOutput(); err != nil {
		return copyFault(original, err, out)
	}
	return nil
}

// Apply changes a tree. Faults "no-patch-program", "source-unreadable", "hunk-failed".
func (p Patch) Apply(ctx context.Context, tree string) error {
	out, err := p.run(ctx, tree)
	if err != nil || out == nil {
		return err
	}
	return &fault.Error{Kind: fault.Unfit, Code: "hunk-failed", What: "the patch does not fit the source tree", Where: p.Path,
		Why: tail(out, 12), Hint: fmt.Sprintf("names are taken without their first %d directories (--strip); the tree must be in the state before the change", p.Strip)}
}

// Fits reports whether a patch could be applied, and changes nothing. Faults
// "no-patch-program", "source-unreadable".
func (p Patch) Fits(ctx context.Context, tree string) (bool, error) {
	out, err := p.run(ctx, tree, "--dry-run")
	return err == nil && out == nil, err
}

// run runs patch(1). refused is what it says if the patch does not fit, or nil.
func (p Patch) run(ctx context.Context, tree string, more ...string) (refused []byte, err error) {
	path, err := filepath.Abs(p.Path)
	if err != nil {
		return nil, err
	}
	args := append([]string{"--force", "--silent", "--no-backup-if-mismatch", "--reject-file=-", "-p" + strconv.Itoa(p.Strip), "--input=" + path}, more...)
	if p.Reverse {
		args = append(args, "--reverse")
	}
	if p.Exact {
		args = append(args, "--fuzz=0")
	}
	cmd := exec.CommandContext(ctx, "patch", args...)
	cmd.Dir = tree
	// POSIXLY_CORRECT and what else changes its ways is left out.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(), "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err == nil:
		return nil, nil
	case errors.Is(err, exec.ErrNotFound):
		return nil, &fault.Error{Kind: fault.Failed, Code: "no-patch-program", What: "cannot apply " + p.Path, Err: err, Hint: "install patch(1)"}
	}
	if _, err := os.Stat(path); err != nil {
		return nil, &fault.Error{Kind: fault.Usage, Code: "source-unreadable", What: "cannot read the patch", Where: p.Path, Err: err}
	}
	return append([]byte{}, out...), nil
}

// Install makes a file of the tree what it is after the change; content is that of
// c.Post or derived from it.
func (c Change) Install(tree string, content []byte) error {
	path := filepath.Join(tree, c.Path)
	if c.Post == "" {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	st, err := os.Lstat(c.Post)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// A new file: others may have a hard link to the old one.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if st.Mode()&os.ModeSymlink != 0 {
		to, err := os.Readlink(c.Post)
		if err != nil {
			return err
		}
		return os.Symlink(to, path)
	}
	if err := os.WriteFile(path, content, st.Mode().Perm()); err != nil {
		return err
	}
	return os.Chmod(path, st.Mode().Perm())
}
