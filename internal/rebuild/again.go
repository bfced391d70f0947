package rebuild

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
	"hotpatch/internal/intercept"
)

// another says why the build has to be run once more, or gives "".
//
// A compilation opens each file that it reads once, once more if it shows a line of it
// in a message, and so does the note that is taken of its content.
func (b *rebuilder) another(units []*intercept.Compile, because map[*intercept.Compile][]string) string {
	readers := make(map[string]int)
	for _, c := range b.compiles {
		for _, d := range c.Deps {
			readers[real(d.Path)]++
		}
	}
	b.report.Unread = nil
	reason := ""
	for _, c := range b.Changes {
		path := filepath.Join(b.root, c.Path)
		n := readers[real(path)]
		if n == 0 {
			b.report.Unread = append(b.report.Unread, c.Path)
		}
		if c.New {
			if b.opens.times(nearest(filepath.Dir(path))) > 0 && reason == "" {
				reason = c.Path + " is new, and the build has looked at what is in its directory"
			}
			continue
		}
		if times := b.opens.times(path); times > 3*n && reason == "" {
			reason = fmt.Sprintf("%s was read by something else than compilers", c.Path)
		}
	}
	if len(b.gone) > 0 && reason == "" {
		reason = within(b.root, b.gone[0].Source) + " is removed"
	}
	for _, u := range b.report.Elsewhere {
		for _, out := range u.Linked {
			if reason == "" && wasRead(absolute(b.root, out)) {
				reason = fmt.Sprintf("%s changes, and may be a tool of the build", out)
			}
		}
	}
	return reason
}

// wasRead reports whether a file may have been read or run since it was written.
func wasRead(path string) bool {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Statfs(path, &fs) != nil || unix.Stat(path, &st) != nil {
		return true
	}
	const noatime = 0x400 // ST_NOATIME, statfs(2)
	return fs.Flags&noatime != 0 || st.Atim.Nano() >= st.Mtim.Nano()
}

// renew makes the copy what the tree is: build systems do not notice everything that a
// change of theirs means for what is built already.
func (b *rebuilder) renew(ctx context.Context) error {
	entries, err := os.ReadDir(b.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(b.root, e.Name())); err != nil {
			return err
		}
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--", b.original()+"/.", b.root).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the tree once more: %w: %s", err, ending(out))
	}
	return nil
}

// again runs the build in the state after the change. Nothing of the images is
// compiled.
func (b *rebuilder) again(ctx context.Context) error {
	for _, c := range b.compiles {
		_, images, linked := b.graph.of(c)
		if err := b.watch.Reuse(c, len(images) > 0 || !b.covered && linked); err != nil {
			return workFault(err)
		}
	}
	if err := b.renew(ctx); err != nil {
		return workFault(err)
	}
	old, err := b.install()
	if err != nil {
		return workFault(err)
	}
	if err := b.build(ctx, b.Command, 1); err != nil {
		return err
	}
	compiles, err := b.watch.Compiles(1)
	if err != nil {
		return workFault(err)
	}
	links, err := b.watch.Linkings(1)
	if err != nil {
		return workFault(err)
	}
	g := newGraph(append(slices.Clone(b.compiles), compiles...), links, b.Images)
	for i, libs := range g.libraries(b.Images, b.root) {
		for _, lib := range libs {
			if !slices.Contains(b.report.Libraries[i], lib) {
				b.report.Libraries[i] = append(b.report.Libraries[i], lib)
			}
		}
	}
	var refused fault.List
	for _, c := range compiles {
		linkedInto, images, linked := g.of(c)
		if len(images) == 0 && (b.covered || !linked) {
			continue
		}
		// There may be several, with options of their own.
		was := slices.DeleteFunc(slices.Clone(b.graph.byOutput[real(c.Output)]), func(w *intercept.Compile) bool { return b.removes(w.Source) })
		if len(was) == 0 { // one that is linked by the same command gets a name from that
			was = slices.DeleteFunc(slices.Clone(b.compiles), func(w *intercept.Compile) bool { return w.Source != c.Source || w.Source == "" })
		}
		switch {
		case len(was) == 0 && c.Assembler():
			refused = append(refused, &fault.Error{Kind: fault.Unfit, Code: "new-source-file", What: "cannot patch in a new file", Where: within(b.root, c.Source),
				Why: "it is in assembler, in which nothing tells functions apart", Hint: "put the new code into a C or C++ file"})
		case len(was) == 0 && len(images) == 0:
			refused = append(refused, &fault.Error{Kind: fault.Unfit, Code: "new-source-file", What: "cannot patch in a new file", Where: within(b.root, c.Source),
				Why: "it is linked into " + b.names(linkedInto) + ", and which of the bases that is was not seen", Hint: "name what the build makes of it with --base"})
		case len(was) == 0:
			b.fresh = append(b.fresh, b.newUnit(c, linkedInto, images))
		case !slices.ContainsFunc(was, func(w *intercept.Compile) bool { return slices.Equal(w.Args, c.Args) }):
			refused = append(refused, &fault.Error{Kind: fault.Unfit, Code: "changed-flags", What: "cannot compare the two states", Where: within(b.root, c.Source),
				Why:  "the change makes the build compile it with other options: " + difference(was[len(was)-1].Args, c.Args),
				Hint: "a patch carries changes of source files; leave those of the build system out"})
		}
	}
	if err := refused.ErrOrNil(); err != nil {
		return err
	}
	if err := b.renamed(ctx, compiles, old); err != nil {
		return err
	}
	b.report.Relinked = b.relinked(g)
	return nil
}

// newUnit is a file that the build compiles only after the change.
func (b *rebuilder) newUnit(c *intercept.Compile, linked []string, images []int) Unit {
	u := Unit{Source: within(b.root, c.Source), Output: within(b.root, c.Output), Images: images, Post: c.Object, New: true}
	for _, p := range linked {
		u.Linked = append(u.Linked, within(b.root, p))
	}
	for _, d := range c.Deps {
		b.report.Unread = slices.DeleteFunc(b.report.Unread, func(rel string) bool {
			if real(filepath.Join(b.root, rel)) != real(d.Path) {
				return false
			}
			u.Because = append(u.Because, rel)
			return true
		})
	}
	return u
}

// difference gives what two command lines do not share.
func difference(was, now []string) string {
	text := ""
	for _, a := range was {
		if !slices.Contains(now, a) {
			text += " without " + a
		}
	}
	for _, a := range now {
		if !slices.Contains(was, a) {
			text += " with " + a
		}
	}
	if text == "" {
		return "in another order"
	}
	return text[1:]
}
