package rebuild

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountCopy puts the copy in place of the tree, in the mount namespace of this process.
func mountCopy(r *Request) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount / private: %w", err)
	}
	if r.Origin == "" {
		// The tree itself stays within reach, to begin anew.
		if err := os.Mkdir(r.original(), 0o755); err != nil {
			return err
		}
		if err := unix.Mount(r.Tree, r.original(), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount the tree: %w", err)
		}
	} else if err := makePlace(r.Tree, filepath.Join(r.Work, "root")); err != nil {
		return fmt.Errorf("make %s: %w", r.Tree, err)
	}
	if err := unix.Mount(r.Copy(), r.Tree, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the copy over the tree: %w", err)
	}
	return nil
}

// makePlace makes a directory that exists in this mount namespace only: in a file
// system in memory over the nearest directory above that exists. If that is the root,
// the new root is one in memory too, with everything of the old one mounted in it. It
// is assembled in the directory scratch.
func makePlace(dir, scratch string) error {
	above := nearest(dir)
	switch above {
	case dir:
		return nil
	case "/":
		return newRoot(dir, scratch)
	}
	if err := unix.Mount("tmpfs", above, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o755)
}

func newRoot(dir, scratch string) error {
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, e := range entries {
		from, to := filepath.Join("/", e.Name()), filepath.Join(scratch, e.Name())
		if e.Type()&os.ModeSymlink != 0 {
			target, err := os.Readlink(from)
			if err == nil {
				err = os.Symlink(target, to)
			}
			if err != nil {
				return err
			}
			continue
		}
		if e.IsDir() {
			err = os.Mkdir(to, 0o755)
		} else {
			err = os.WriteFile(to, nil, 0o644)
		}
		if err == nil {
			err = unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
		}
		if errors.Is(err, unix.ENOENT) {
			continue // it went away
		}
		if err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(scratch, dir), 0o755); err != nil {
		return err
	}
	// pivot_root(2): with both names the same, the old root lies on the new one.
	if err := os.Chdir(scratch); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return os.Chdir("/")
}
