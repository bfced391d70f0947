package debsource

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"hotpatch/internal/fault"
	"hotpatch/internal/sourcetree"
)

// States are the two states of the source that patches tell apart.
type States struct {
	Before, After string   // trees
	Added         []string // patches that the package has not, by the names that were given
	TakenOut      []string // patches that it has: they are in no program that is older
	Moved         []string // later patches that were taken out too, and put back
}

// States finds out whether the package has the patches already. One that it has is
// taken out of the state before, together with the later ones that it cannot be taken
// out without, which are put back; another is added to the state after. A relative
// path is that of a file in the package, if there is one, or else below the current
// directory. Trees are made in dir. Faults "patch-state", "series-conflict",
// "hunk-failed", "source-unreadable", and those of sourcetree.Copy.
func (p *Package) States(ctx context.Context, patches []sourcetree.Patch, dir string) (*States, error) {
	s := &States{Before: p.Dir, After: p.Dir}
	var out []sourcetree.Patch
	for _, given := range patches {
		patch := given
		if local := filepath.Join(p.Dir, given.Path); !filepath.IsAbs(given.Path) && isFile(local) {
			patch.Path = local
		}
		reverse, err := p.has(ctx, patch, s.After)
		if err != nil {
			return nil, err
		}
		if reverse {
			out = append(out, patch)
			s.TakenOut = append(s.TakenOut, given.Path)
			continue
		}
		if s.After == p.Dir {
			s.After = filepath.Join(dir, "after")
			if err := sourcetree.Copy(ctx, p.Dir, s.After); err != nil {
				return nil, err
			}
		}
		if err := patch.Apply(ctx, s.After); err != nil {
			return nil, err
		}
		s.Added = append(s.Added, given.Path)
	}
	if len(out) == 0 {
		return s, nil
	}
	s.Before = filepath.Join(dir, "before")
	var err error
	s.Moved, err = p.takeOut(ctx, out, s.Before)
	return s, err
}

// has reports whether a patch is in the package's tree. after is the tree that it would
// be added to.
func (p *Package) has(ctx context.Context, patch sourcetree.Patch, after string) (bool, error) {
	if p.listed(patch) >= 0 {
		return true, nil
	}
	patch.Exact = true
	forward, err := patch.Fits(ctx, after)
	if err != nil {
		return false, err
	}
	patch.Reverse = true
	reverse, err := patch.Fits(ctx, p.Dir)
	if err != nil {
		return false, err
	}
	if forward && reverse {
		return false, &fault.Error{Kind: fault.Unfit, Code: "patch-state", What: "cannot tell whether the package has the patch already", Where: patch.Path,
			Why: "it can be applied and taken out, and the package's series does not name it", Hint: "give more lines of context in the patch, or use --source with a tree in the state before it"}
	}
	return reverse, nil
}

// listed gives the index of a patch among those that were applied, or -1. Its content
// counts.
func (p *Package) listed(patch sourcetree.Patch) int {
	content, err := os.ReadFile(patch.Path)
	if err != nil {
		return -1
	}
	return slices.IndexFunc(p.Applied, func(name string) bool {
		other, err := os.ReadFile(p.series(name).Path)
		return err == nil && bytes.Equal(other, content)
	})
}

// series gives a patch that dpkg-source applies: with -p1, and nothing else fits.
func (p *Package) series(name string) sourcetree.Patch {
	return sourcetree.Patch{Path: filepath.Join(p.Dir, "debian", "patches", name), Strip: 1, Exact: true}
}

// takeOut makes a new tree without patches that the package's has, and gives the later
// ones of the series that had to be moved for that.
func (p *Package) takeOut(ctx context.Context, patches []sourcetree.Patch, tree string) (moved []string, err error) {
	first := len(p.Applied) // of the series that has to go
	unlisted := false
	gone := make(map[int]bool)
	for i := range patches {
		if n := p.listed(patches[i]); n >= 0 {
			first = min(first, n)
			gone[n] = true
		} else {
			unlisted = true
		}
	}
	if err := sourcetree.Copy(ctx, p.Dir, tree); err != nil {
		return nil, err
	}
	direct := slices.Clone(patches)
	if !unlisted {
		slices.SortFunc(direct, func(a, b sourcetree.Patch) int { return p.listed(a) - p.listed(b) })
	}
	var failed string
	for _, patch := range slices.Backward(direct) {
		patch.Exact, patch.Reverse = true, true
		ok, err := patch.Fits(ctx, tree)
		if err == nil && ok {
			err = patch.Apply(ctx, tree)
		}
		if err != nil {
			return nil, err
		}
		if !ok {
			failed = patch.Path
			break
		}
	}
	switch {
	case failed == "":
		return nil, nil
	case unlisted:
		return nil, p.conflict(failed, "taken out", "later changes of the same lines are in the way, and the series does not say which they are")
	}
	if err := os.RemoveAll(tree); err != nil {
		return nil, err
	}
	if err := sourcetree.Copy(ctx, p.Dir, tree); err != nil {
		return nil, err
	}
	for i := len(p.Applied) - 1; i >= first; i-- {
		patch := p.series(p.Applied[i])
		patch.Reverse = true
		if err := p.step(ctx, patch, tree, "taken out"); err != nil {
			return nil, err
		}
	}
	for i := first; i < len(p.Applied); i++ {
		if gone[i] {
			continue
		}
		if err := p.step(ctx, p.series(p.Applied[i]), tree, "put back"); err != nil {
			return nil, err
		}
		moved = append(moved, p.Applied[i])
	}
	return moved, nil
}

// step applies a patch of the series, one way or the other.
func (p *Package) step(ctx context.Context, patch sourcetree.Patch, tree, what string) error {
	ok, err := patch.Fits(ctx, tree)
	if err != nil {
		return err
	}
	if !ok {
		return p.conflict(patch.Path, what, "it does not fit without the patches that are in question")
	}
	return patch.Apply(ctx, tree)
}

func (p *Package) conflict(path, what, why string) *fault.Error {
	name, err := filepath.Rel(p.Dir, path)
	if err != nil || !filepath.IsLocal(name) {
		name = path
	}
	return &fault.Error{Kind: fault.Unfit, Code: "series-conflict", What: fmt.Sprintf("cannot make the source before the change: %s cannot be %s", name, what), Where: p.Name + " " + p.Version,
		Why: why, Hint: "name that patch too with --patch, if the process has neither; or give the source package of the version that runs, which has not the patch"}
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}
