package build

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
	"hotpatch/internal/rebuild"
)

// FromProcess copies the images that a process runs into a directory, its program
// first: the very files that are mapped, also if they were replaced since. Which of
// them a change concerns is for others to find out. Faults are those of procfs.
func FromProcess(pid int, dir string) ([]Base, error) {
	p, err := procfs.Open(pid)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	maps, err := p.Maps()
	if err != nil {
		return nil, err
	}
	type file struct {
		major, minor uint32
		inode        uint64
	}
	seen := make(map[file]bool)
	var bases []Base
	for _, m := range maps {
		id := file{m.DevMajor, m.DevMinor, m.Inode}
		if m.Inode == 0 || m.Perm&procfs.Exec == 0 || seen[id] {
			continue
		}
		seen[id] = true
		path := filepath.Join(dir, strconv.Itoa(len(bases)), filepath.Base(m.Path))
		ok, err := copyImage(p, m, path)
		if err != nil {
			return nil, err
		}
		if ok {
			bases = append(bases, Base{Path: path, Shown: m.Path, Maybe: true})
		}
	}
	if len(bases) == 0 {
		return nil, &fault.Error{Kind: fault.NoAccess, Code: "no-images", What: "cannot take the bases from the process", Where: strconv.Itoa(pid), Why: "it has no ELF file mapped"}
	}
	return bases, nil
}

// copyImage copies a mapped file if it is an ELF file.
func copyImage(p *procfs.Proc, m procfs.Map, to string) (bool, error) {
	f, err := p.OpenMapped(m)
	if err != nil {
		// As its user, only the path is left; what it leads to is compared with the
		// process when the patch is applied.
		if g, perr := p.OpenInRoot(m.Path); perr == nil && !m.Deleted {
			f, err = g, nil
		}
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, 4)
	if _, err := io.ReadFull(f, head); err != nil || string(head) != "\x7fELF" {
		return false, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, workFault(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return false, workFault(err)
	}
	out, err := os.Create(to)
	if err != nil {
		return false, workFault(err)
	}
	_, err = io.Copy(out, f)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return false, workFault(err)
	}
	return true, nil
}

func workFault(err error) *fault.Error {
	return &fault.Error{Kind: fault.Failed, Code: "build-work", What: "cannot work on the build", Err: err, Hint: "TMPDIR says where there is room"}
}

// AddDebug gives each debug file to the base that has its build-id. One that fits no
// base is given to the first, which will be refused.
func AddDebug(bases []Base, files []string) {
	if len(bases) == 0 {
		return
	}
	ids := make([]string, len(bases))
	for i, b := range bases {
		ids[i] = rebuild.Describe(b.Path).BuildID
	}
	for _, f := range files {
		i := max(0, slices.Index(ids, rebuild.Describe(f).BuildID))
		bases[i].Debug = append(bases[i].Debug, f)
	}
}

// images says what the bases are, for the build.
func images(bases []Base) []rebuild.Image {
	var list []rebuild.Image
	for _, b := range bases {
		im := rebuild.Describe(b.Path)
		im.Maybe = b.Maybe
		list = append(list, im)
	}
	return list
}
