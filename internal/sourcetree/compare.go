package sourcetree

import (
	"bytes"
	"context"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
)

// Compare gives the files that are different in two trees, and keeps those of the
// second one in the directory store. Files of the same size and time are not read: the
// trees are copies of one tree, which were changed. Faults "tree-copy", "empty-patch".
func Compare(ctx context.Context, before, after, store string) ([]Change, error) {
	was, err := snapshot(before)
	if err != nil {
		return nil, copyFault(before, err, nil)
	}
	now, err := snapshot(after)
	if err != nil {
		return nil, copyFault(after, err, nil)
	}
	var list []Change
	for _, rel := range slices.Sorted(maps.Keys(now)) {
		old, there := was[rel]
		if now[rel].mode.IsDir() {
			continue
		}
		if there {
			same, err := same(filepath.Join(before, rel), filepath.Join(after, rel), old, now[rel])
			if err != nil {
				return nil, copyFault(after, err, nil)
			}
			if same {
				continue
			}
		}
		c := Change{Path: rel, New: !there, Post: filepath.Join(store, strconv.Itoa(len(list)))}
		if out, err := exec.CommandContext(ctx, "cp", "-a", "--", filepath.Join(after, rel), c.Post).CombinedOutput(); err != nil {
			return nil, copyFault(after, err, out)
		}
		list = append(list, c)
	}
	list = append(list, deleted(was, now)...)
	if len(list) == 0 {
		return nil, emptyPatch()
	}
	return list, nil
}

// deleted gives the files that are no longer there.
func deleted(was, now map[string]file) (list []Change) {
	for _, rel := range slices.Sorted(maps.Keys(was)) {
		if _, still := now[rel]; !still && !was[rel].mode.IsDir() {
			list = append(list, Change{Path: rel})
		}
	}
	return list
}

// same reports whether two files are.
func same(a, b string, was, now file) (bool, error) {
	if was.mode != now.mode || was.size != now.size {
		return false, nil
	}
	if was.mode&fs.ModeSymlink != 0 {
		to, err := os.Readlink(a)
		if err != nil {
			return false, err
		}
		other, err := os.Readlink(b)
		return to == other, err
	}
	if !was.mode.IsRegular() || was.mtime == now.mtime {
		return true, nil
	}
	text, err := os.ReadFile(a)
	if err != nil {
		return false, err
	}
	other, err := os.ReadFile(b)
	return bytes.Equal(text, other), err
}
