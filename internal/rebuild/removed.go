package rebuild

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"hotpatch/internal/fault"
	"hotpatch/internal/intercept"
	"hotpatch/internal/sourcetree"
)

// removes reports whether the change deletes a file.
func (b *rebuilder) removes(path string) bool {
	return path != "" && slices.ContainsFunc(b.Changes, func(c sourcetree.Change) bool {
		return c.Post == "" && real(filepath.Join(b.root, c.Path)) == real(path)
	})
}

// renamed pairs what was compiled of files that the change deletes with what is compiled of new ones:
// the object that has the most of the functions and variables of the old one takes its place. old is
// the content of the files before the change.
func (b *rebuilder) renamed(ctx context.Context, compiles []*intercept.Compile, old map[string][]byte) error {
	var refused fault.List
	for i, w := range b.gone {
		was := globals(w.Object)
		_, images, _ := b.graph.of(w)
		best, most := -1, 0
		for k, u := range b.fresh {
			if !slices.Equal(u.Images, images) || !u.New {
				continue
			}
			n := 0
			for name := range globals(u.Post) {
				if was[name] {
					n++
				}
			}
			if n > most {
				best, most = k, n
			}
		}
		if best < 0 {
			refused = append(refused, &fault.Error{Kind: fault.Unfit, Code: "removed-source-file", What: "cannot patch a file away", Where: within(b.root, w.Source),
				Why:  "the change removes it, and no file that is new has what is in it",
				Hint: "leave the removal out of the patch: code that nothing calls does no harm; what has moved to another file can only be changed where it was"})
			continue
		}
		u := &b.fresh[best]
		c := compiles[slices.IndexFunc(compiles, func(c *intercept.Compile) bool { return c.Object == u.Post })]
		if !slices.Equal(plainArgs(w), plainArgs(c)) {
			refused = append(refused, &fault.Error{Kind: fault.Unfit, Code: "changed-flags", What: "cannot compare the two states", Where: u.Source,
				Why:  "it takes the place of " + within(b.root, w.Source) + ", and is compiled with other options: " + difference(plainArgs(w), plainArgs(c)),
				Hint: "a patch carries changes of source files; leave those of the build system out"})
			continue
		}
		pair := b.unit(w, append([]string{w.Source}, c.Source))
		pair.Source, pair.Output, pair.Post = u.Source, u.Output, filepath.Join(b.Work, fmt.Sprintf("renamed-%d.o", i))
		if err := b.renumbered(ctx, c, old[real(w.Source)], pair.Post); err != nil {
			return err
		}
		pair.Indirect = b.indirect(ctx, c, pair)
		*u = pair
	}
	return refused.ErrOrNil()
}

// renumbered compiles a file under another name once more, with the numbers of lines that it had.
func (b *rebuilder) renumbered(ctx context.Context, c *intercept.Compile, old []byte, object string) error {
	post, err := os.ReadFile(c.Source)
	if err != nil {
		return workFault(err)
	}
	if err := os.WriteFile(c.Source, sourcetree.Renumber(old, post), 0o644); err != nil {
		return workFault(err)
	}
	cmd, _ := c.Replay(ctx, object)
	killed(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return &fault.Error{Kind: fault.Failed, Code: "compile-failed", What: "the changed source does not compile", Where: within(b.root, c.Source), Why: ending(out), Err: err}
	}
	return nil
}

// plainArgs gives the options of a compilation without its source.
func plainArgs(c *intercept.Compile) []string {
	return slices.DeleteFunc(slices.Clone(c.Args), func(a string) bool { return real(absolute(c.Dir, a)) == real(c.Source) })
}

// globals gives what an object defines for others.
func globals(object string) map[string]bool {
	names := make(map[string]bool)
	f, err := elf.Open(object)
	if err != nil {
		return names
	}
	defer f.Close()
	list, _ := f.Symbols() // none is no error here
	for _, s := range list {
		if elf.ST_BIND(s.Info) != elf.STB_LOCAL && s.Section != elf.SHN_UNDEF && s.Name != "" {
			names[s.Name] = true
		}
	}
	return names
}
