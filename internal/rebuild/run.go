package rebuild

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/fault"
	"hotpatch/internal/intercept"
	"hotpatch/internal/sourcetree"
)

// rebuilder is one run of the package.
type rebuilder struct {
	Request
	tell  func(format string, args ...any)
	root  string // where the tree is for this process
	watch *intercept.Watch

	compiles []*intercept.Compile
	graph    *graph
	covered  bool
	opens    *opened
	texts    map[string]text
	before   map[string]string // content of what was read, when the build had ended
	report   Report
	fresh    []Unit               // files that only the build after the change compiles
	gone     []*intercept.Compile // of files that the change deletes
}

// run does everything, in the namespace that it was put into.
func run(ctx context.Context, r Request, tell func(format string, args ...any)) (*Report, error) {
	b := &rebuilder{Request: r, tell: tell, root: r.Tree}
	prefix := ""
	if !r.Private {
		b.root = r.Copy()
		prefix = b.root
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	path := ""
	for _, e := range r.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	if b.watch, err = intercept.New(filepath.Join(r.Work, "watch"), self, path, b.Tree, prefix); err != nil {
		return nil, workFault(err)
	}
	if b.Plain {
		if err := b.plain(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.first(ctx); err != nil {
		return nil, err
	}
	if err := b.change(ctx); err != nil {
		return nil, err
	}
	return &b.report, nil
}

func workFault(err error) *fault.Error {
	return &fault.Error{Kind: fault.Failed, Code: "build-work", What: "cannot work on the build", Err: err, Hint: "TMPDIR says where there is room"}
}

// first builds the state before the change.
func (b *rebuilder) first(ctx context.Context) error {
	var watched []string
	for _, c := range b.Changes {
		if c.New {
			watched = append(watched, nearest(filepath.Join(b.root, filepath.Dir(c.Path))))
		} else {
			watched = append(watched, filepath.Join(b.root, c.Path))
		}
	}
	var err error
	if b.opens, err = watchOpens(watched); err != nil {
		return workFault(err)
	}
	err = b.build(ctx, b.Command, 0)
	b.opens.stop()
	if err != nil {
		return err
	}
	if b.compiles, err = b.watch.Compiles(0); err != nil {
		return workFault(err)
	}
	links, err := b.watch.Linkings(0)
	if err != nil {
		return workFault(err)
	}
	b.report.Compiled = len(b.compiles)
	if len(b.compiles) == 0 {
		return &fault.Error{Kind: fault.Unfit, Code: "nothing-compiled", What: "cannot tell what has to be compiled", Where: strings.Join(b.Command, " "),
			Why:  "the build command has ended well, and has called no C or C++ compiler by way of PATH",
			Hint: "everything may be built already (put `make clean` in front), or the build sets PATH, or calls compilers by absolute path, as a directory does that CMake has configured: then let the build command configure a new one"}
	}
	b.graph = newGraph(b.compiles, links, b.Images)
	b.covered = b.graph.covers(b.Images)
	for _, out := range b.graph.outputs {
		out.names() // as long as it is what this build has made
	}
	for _, c := range b.compiles {
		b.report.Objects = append(b.report.Objects, b.object(c))
	}
	b.report.Libraries = b.graph.libraries(b.Images, b.root)
	b.report.Whole, b.report.Folded = b.graph.whole(b.Images), b.graph.folded(b.Images)
	b.before = b.sums()
	return nil
}

// nearest gives the nearest directory above that exists.
func nearest(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// build runs the build command.
func (b *rebuilder) build(ctx context.Context, command []string, round int) error {
	env, err := b.watch.Env(b.Env, round)
	if err != nil {
		return workFault(err)
	}
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "SOURCE_DATE_EPOCH=") }) {
		// So that __DATE__ and __TIME__ are the same in all compilations.
		env = append(env, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", b.epoch()))
	}
	return b.execute(ctx, command, env, fmt.Sprintf("build-%d.log", round), func() string {
		return fmt.Sprintf("%d files compiled", b.watch.Count(round))
	})
}

// epoch gives a time that is the same in the whole run.
func (b *rebuilder) epoch() int64 {
	if st, err := os.Stat(b.Work); err == nil {
		var s unix.Stat_t
		if unix.Stat(filepath.Join(b.Work, "watch", "bin"), &s) == nil {
			return s.Mtim.Sec
		}
		return st.ModTime().Unix()
	}
	return 0
}

// sums gives the content of everything that compilations have read.
func (b *rebuilder) sums() map[string]string {
	all := make(map[string]string)
	for _, c := range b.compiles {
		for _, d := range c.Deps {
			if _, done := all[d.Path]; !done && d.Sum != "" {
				all[d.Path] = intercept.Sum(d.Path)
			}
		}
	}
	return all
}

// affected gives the compilations that have read something that is different now,
// with what that is.
func (b *rebuilder) affected(now map[string]string) (list []*intercept.Compile, because map[*intercept.Compile][]string) {
	because = make(map[*intercept.Compile][]string)
	for _, c := range b.compiles {
		for _, d := range c.Deps {
			if d.Sum != "" && now[d.Path] != b.before[d.Path] && !slices.Contains(because[c], d.Path) {
				because[c] = append(because[c], d.Path)
			}
		}
		because[c] = append(because[c], b.unseen(c)...)
		if len(because[c]) > 0 {
			list = append(list, c)
		}
	}
	return list, because
}

// change goes to the state after the change, and compiles what it concerns.
func (b *rebuilder) change(ctx context.Context) error {
	old, err := b.install()
	if err != nil {
		return workFault(err)
	}
	now := b.sums()
	units, because, err := b.concerned(now)
	if err != nil {
		return err
	}
	if reason := b.another(units, because); reason != "" {
		b.report.Again = true
		b.tell("building once more, without compiling: %s", reason)
		if err := b.again(ctx); err != nil {
			return err
		}
		now = b.sums()
		if units, because, err = b.concerned(now); err != nil {
			return err
		}
	}
	if err := b.renumber(old, now); err != nil {
		return workFault(err)
	}
	return b.replay(ctx, units, because)
}

// concerned gives the compilations that have to be repeated, and refuses those that
// cannot be.
func (b *rebuilder) concerned(now map[string]string) ([]*intercept.Compile, map[*intercept.Compile][]string, error) {
	all, because := b.affected(now)
	b.report.Elsewhere, b.gone = nil, nil
	var units []*intercept.Compile
	var refused fault.List
	for _, c := range all {
		paths, images, linked := b.graph.of(c)
		if b.covered && len(images) == 0 {
			if linked {
				b.report.Elsewhere = append(b.report.Elsewhere, b.unit(c, because[c]))
			}
			continue
		}
		if !linked && !b.latest(c) {
			continue
		}
		refused = append(refused, b.refuse(c, paths, because[c])...)
		if b.removes(c.Source) {
			b.gone = append(b.gone, c)
			continue
		}
		units = append(units, c)
	}
	return units, because, refused.ErrOrNil()
}

// latest reports whether no other compilation has written to the same place since,
// and what was compiled is still there.
func (b *rebuilder) latest(c *intercept.Compile) bool {
	list := b.graph.byOutput[real(c.Output)]
	return list[len(list)-1] == c && b.before[c.Source] != ""
}

// refuse says why a compilation cannot be repeated.
func (b *rebuilder) refuse(c *intercept.Compile, outputs, because []string) (list fault.List) {
	where := within(b.root, c.Source)
	if c.Assembler() {
		list = append(list, &fault.Error{Kind: fault.Unfit, Code: "changed-assembler", What: "cannot patch a file in assembler", Where: where,
			Why: "it has read " + b.names(because), Hint: "write the patch library by hand (include/hotpatch.h)"})
	}
	for _, d := range c.Deps {
		if d.Sum != "" && b.before[d.Path] != d.Sum {
			list = append(list, &fault.Error{Kind: fault.Unfit, Code: "unstable-input", What: "cannot compile again what was compiled", Where: where,
				Why:  within(b.root, d.Path) + " is not what it was when the build has compiled this file, so more would differ than the change",
				Hint: "build from a clean tree"})
			break
		}
	}
	for _, out := range b.graph.outputs {
		if len(out.unknown) > 0 && slices.Contains(outputs, out.path) {
			list = append(list, b.unrecorded(out))
		}
	}
	return list
}

func (b *rebuilder) unrecorded(out *linked) *fault.Error {
	return &fault.Error{Kind: fault.Unfit, Code: "unrecorded-compile", What: "cannot tell what has to be compiled", Where: within(b.root, out.path),
		Why:  "it is linked from objects of which no compilation was seen: " + b.names(out.unknown),
		Hint: "build from a clean tree; compilers must be called by way of PATH (CC=gcc, not CC=/usr/bin/gcc)"}
}

func (b *rebuilder) names(paths []string) string {
	const most = 5
	var list []string
	for i, p := range paths {
		if i == most {
			list = append(list, fmt.Sprintf("and %d more", len(paths)-most))
			break
		}
		list = append(list, within(b.root, p))
	}
	return strings.Join(list, ", ")
}

// object says what has become of a compilation.
func (b *rebuilder) object(c *intercept.Compile) Object {
	_, images, _ := b.graph.of(c)
	o := Object{File: c.Object, Source: within(b.root, c.Source), Assembler: c.Assembler(), Images: images, Absent: b.graph.without(c)}
	for _, out := range b.graph.outputs {
		switch {
		case !out.objects[c] || len(out.images) > 0:
		case out.program:
			o.Programs = append(o.Programs, within(b.root, out.path))
		case !isRelocatable(out.path):
			o.Libraries = append(o.Libraries, within(b.root, out.path))
		}
	}
	return o
}

func (b *rebuilder) unit(c *intercept.Compile, because []string) Unit {
	u := Unit{Source: within(b.root, c.Source), Output: within(b.root, c.Output), Pre: c.Object}
	if strings.HasPrefix(c.Output, filepath.Join(b.Work, "watch")+"/") {
		u.Output = u.Source // compiled and linked by one command: the object is ours
	}
	var linkedInto []string
	linkedInto, u.Images, _ = b.graph.of(c)
	u.Absent = b.graph.without(c)
	for _, out := range b.graph.outputs {
		switch {
		case !out.objects[c] || len(out.images) > 0 || isRelocatable(out.path) || b.graph.lacks(out, c):
		case out.program:
			u.Programs = append(u.Programs, within(b.root, out.path))
		default:
			u.Libraries = append(u.Libraries, within(b.root, out.path))
		}
	}
	for _, p := range linkedInto {
		u.Linked = append(u.Linked, within(b.root, p))
	}
	for _, p := range because {
		u.Because = append(u.Because, within(b.root, real(p)))
	}
	return u
}

// install changes the files, and gives the content that they had.
func (b *rebuilder) install() (map[string][]byte, error) {
	old := make(map[string][]byte)
	for _, c := range b.Changes {
		path := real(filepath.Join(b.root, c.Path))
		if data, err := os.ReadFile(path); err == nil {
			old[path] = data
		}
		var content []byte
		if c.Post != "" {
			if st, err := os.Lstat(c.Post); err == nil && st.Mode().IsRegular() {
				if content, err = os.ReadFile(c.Post); err != nil {
					return nil, err
				}
			}
		}
		if err := c.Install(b.root, content); err != nil {
			return nil, err
		}
	}
	return old, nil
}

// renumber keeps the numbers of lines in the changed files that compilers read.
func (b *rebuilder) renumber(old map[string][]byte, now map[string]string) error {
	for path := range now {
		pre, changed := old[real(path)]
		if !changed || now[path] == b.before[path] {
			continue
		}
		delete(old, real(path)) // once
		post, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone; whoever reads it says so
		}
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, sourcetree.Renumber(pre, post), st.Mode().Perm()); err != nil {
			return err
		}
		// __TIMESTAMP__
		if err := os.Chtimes(path, time.Unix(b.epoch(), 0), time.Unix(b.epoch(), 0)); err != nil {
			return err
		}
	}
	return nil
}
