package sourcetree

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
)

// Copy copies a source tree to a directory that does not exist yet, with times,
// permissions and links. Faults "source-unreadable", "tree-copy".
func Copy(ctx context.Context, from, to string) error {
	if st, err := os.Stat(from); err != nil || !st.IsDir() {
		if err == nil {
			err = unix.ENOTDIR
		}
		return &fault.Error{Kind: fault.Usage, Code: "source-unreadable", What: "cannot read the source tree", Where: from, Err: err}
	}
	if err := os.Mkdir(to, 0o755); err != nil {
		return copyFault(from, err, nil)
	}
	// cp(1) knows hard links, holes, attributes and whatever else there is.
	out, err := exec.CommandContext(ctx, "cp", "-a", "--", from+"/.", to).CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return copyFault(from, err, out)
	}
	return nil
}

func copyFault(from string, err error, out []byte) *fault.Error {
	return &fault.Error{Kind: fault.Failed, Code: "tree-copy", What: "cannot copy the source tree", Where: from, Why: tail(out, 3), Err: err,
		Hint: "TMPDIR says where there is room"}
}

// tail gives the last lines of a program's output in one line.
func tail(out []byte, lines int) string {
	all := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "; ")
}

// file is what tells one state of a file from another.
type file struct {
	size  int64
	mtime int64
	inode uint64
	mode  fs.FileMode
}

// snapshot gives all files and directories below a directory.
func snapshot(dir string) (map[string]file, error) {
	all := make(map[string]file)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		all[rel] = file{st.Size, st.Mtim.Nano(), st.Ino, d.Type()}
		return nil
	})
	return all, err
}
