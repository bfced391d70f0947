package rebuild

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"

	"hotpatch/internal/fault"
)

// largestText bounds the files in which names of files are looked for.
const largestText = 8 << 20

// movable refuses a tree that holds its own path: a build of a copy at another place
// would then read from the tree itself, and write into it.
func movable(r Request) error {
	var found string
	err := filepath.WalkDir(r.Copy(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == ".git" {
			return fs.SkipDir
		}
		text := []byte(nil)
		switch info, err := d.Info(); {
		case err != nil:
			return err
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text = []byte(to)
		case d.Type().IsRegular() && info.Size() <= largestText:
			if text, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		if bytes.Contains(text, []byte(r.Tree)) {
			found = within(r.Copy(), path)
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return workFault(err)
	}
	for _, word := range r.Command {
		if bytes.Contains([]byte(word), []byte(r.Tree)) {
			found = word
		}
	}
	if found == "" {
		return nil
	}
	return &fault.Error{Kind: fault.NoAccess, Code: "tree-path", What: "cannot build a copy of the source tree", Where: r.Tree,
		Why:  "no mount namespace can be had, in which the copy would have the tree's path, and " + found + " names that path",
		Hint: "run it as root, or where user namespaces are allowed; or build from a clean tree"}
}
