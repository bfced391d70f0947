package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	hotbuild "hotpatch/internal/build"
	"hotpatch/internal/fault"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/patchfile"
	"hotpatch/internal/patchlink"
	"hotpatch/internal/sourcetree"
)

type buildOptions struct {
	pre, post []string
	source    string
	deb       string
	watched   bool
	patches   []string
	strip     limitFlag
	command   []string
	objects   []string
	bases     []string
	pid       pidFlag
	debug     []string
	allow     []string
	libraries []string
	out       string
	name      string
	version   versionFlag
	text      string
	cves      []string
	jobs      limitFlag
	keepWork  string
}

func newBuild(a *app) *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use:   "build --source DIR --patch FILE --pid PID -o FIX.so -- COMMAND...",
		Short: "make a patch from a change of the source",
		Long: `Make a patch from a change of the source, or from object files before and after.

With --source, a copy of the source tree is built with the command that is given, and
the compilers that it calls by way of PATH are watched. Then the files are changed, and
what has read a changed file is compiled again, with the same flags: which that is, the
compilers say themselves. The tree must be clean and in the state before the change, and
stays as it is.

With --deb-source the source is a package of Debian (its .dsc, with the files that it
names beside it), and is built as the distribution does, or with the command that is
given, at the path at which that was done. A relative --patch may name a file in the
package. What the package has already is taken out of the state before. The package is
built without watching first: if a base is the very file that comes out, its symbols
are used. --watched-only leaves that out.

With --pre and --post the object files are yours. Both must come from the same compiler
with the same flags, among them -ffunction-sections and -fdata-sections.

The code of the objects is compared, instruction by instruction; the functions that
differ, and what is new, become the patch. Where everything else is, the base says: the
program or the library that runs. It needs no symbols, since the code before the change
is found in it; if that is not there, the base was built from another source, and is
refused.

What a patch cannot do is refused with file, line and symbol: another initial value
or size of existing data, another layout of types, another vtable, and so on. Some of
it can be allowed by name, which is recorded in the patch.`,
		Example: `  hotpatch build --source . --patch ../fix.patch --pid 4711 -o fix.so -- make
  hotpatch build --source served-1.2 --patch fix.patch --base /usr/sbin/served \
      -o fix.so -- sh -c './configure && make -j4'
  hotpatch build --deb-source served_1.2-1.dsc --patch debian/patches/fix.patch \
      --pid 4711 -o fix.so
  hotpatch build --pre old/parse.o --post new/parse.o --base /usr/sbin/served -o fix.so`,
		Annotations: exits(0, 1, 2, 4, 5, 7),
		RunE: a.start(func(cmd *cobra.Command, args []string) error {
			o.command = args
			return a.build(cmd, &o)
		}),
	}
	f := cmd.Flags()
	o.strip = 1
	f.StringVar(&o.source, "source", "", "the source tree, before the change")
	f.StringVar(&o.deb, "deb-source", "", "the .dsc file of a Debian source package, before or after the\nchange")
	f.BoolVar(&o.watched, "watched-only", false, "with --deb-source: do not build without watching first, to compare\nbuild-ids")
	f.Var((*listFlag)(&o.patches), "patch", "a change of it, for patch(1); can be repeated, and is applied in\nthis order")
	f.Var(&o.strip, "strip", "directories to take off the names in the patches")
	f.Var((*listFlag)(&o.pre), "pre", "an object file before the change; can be repeated, with a --post\nfor each, in the same order")
	f.Var((*listFlag)(&o.post), "post", "the same object file after the change")
	f.Var((*listFlag)(&o.objects), "objects", "with --pre and --post: the other object files that the base was\nlinked from, or a directory with them; can be repeated")
	f.Var((*listFlag)(&o.bases), "base", "the program or library that runs; can be repeated")
	o.pid.add(cmd, "take the bases from a process: its program and its libraries")
	f.Var((*listFlag)(&o.debug), "debug", "a separate debug file of a base; can be repeated")
	f.StringVarP(&o.out, "output", "o", "", "the patch library to be written")
	f.StringVar(&o.name, "name", "", "the patch's name (default: that of the output)")
	f.Var(&o.version, "patch-version", "the patch's version (default 1)")
	f.StringVar(&o.text, "description", "", "one line about the patch")
	f.Var((*listFlag)(&o.cves), "cve", "a CVE identifier that the patch is for; can be repeated")
	f.Var((*listFlag)(&o.libraries), "library", "a library that new code needs in addition, as for the compiler's\n-l, or a path; can be repeated")
	f.Var((*listFlag)(&o.allow), "allow", "allow what would be refused: "+strings.Join(objdiff.AllOverrides, ",\n")+"; can be repeated")
	f.Var(&o.jobs, "jobs", "files to compile again at the same time (0: as many as processors)")
	f.StringVar(&o.keepWork, "keep-work", "", "keep the copy, the objects and the output of the build in this\nnew directory")
	for flag, name := range map[string]string{"pre": "A.o", "post": "B.o", "base": "BINARY", "debug": "FILE", "output": "FIX.so", "name": "NAME",
		"description": "TEXT", "cve": "ID", "library": "LIB", "allow": "NAME", "source": "DIR", "deb-source": "FILE.dsc", "patch": "FILE", "objects": "PATH", "keep-work": "DIR"} {
		argument(cmd, flag, name)
	}
	a.addJSON(cmd)
	completeFlag(cmd, "allow", objdiff.AllOverrides...)
	return cmd
}

// check refuses flags that do not go together.
func (o *buildOptions) check(cmd *cobra.Command) error {
	tree := o.source != "" || o.deb != ""
	switch {
	case o.source != "" && o.deb != "":
		return usage("--source and --deb-source exclude each other")
	case !tree && len(o.command) > 0:
		return usage("unexpected argument %q", o.command[0])
	case !tree && len(o.pre) == 0 && len(o.post) == 0:
		return usage("no source given: --source DIR, --deb-source FILE.dsc, or --pre A.o --post B.o")
	case tree && len(o.pre)+len(o.post) > 0:
		return usage("--source, --deb-source and --pre, --post exclude each other")
	case !tree && (len(o.patches) > 0 || o.keepWork != "" || cmd.Flags().Changed("jobs") || cmd.Flags().Changed("strip")):
		return usage("--patch, --strip, --jobs and --keep-work need --source or --deb-source")
	case tree && len(o.objects) > 0:
		return usage("--objects goes with --pre and --post: a build that is watched knows them")
	case o.deb == "" && o.watched:
		return usage("--watched-only needs --deb-source")
	case len(o.pre) != len(o.post):
		return usage("%d times --pre and %d times --post are given", len(o.pre), len(o.post))
	case tree && len(o.patches) == 0:
		return usage("no change given: --patch FILE")
	case o.source != "" && len(o.command) == 0:
		return usage("no build command given: -- COMMAND...")
	case len(o.command) > 0 && cmd.ArgsLenAtDash() != 0:
		return usage("unexpected argument %q: the build command comes after --", o.command[0])
	case len(o.bases) == 0 && o.pid == 0:
		return usage("no base given: --base BINARY or --pid PID")
	case len(o.bases) > 0 && o.pid != 0:
		return usage("--base and --pid exclude each other")
	case o.out == "":
		return usage("no output given: -o FIX.so")
	}
	return nil
}

func (a *app) build(cmd *cobra.Command, o *buildOptions) error {
	if err := o.check(cmd); err != nil {
		return err
	}
	r := hotbuild.Request{
		Allow: o.allow, Out: o.out, Progress: a.tell, Objects: o.objects,
		Meta: patchlink.Meta{Name: o.name, Version: max(uint64(o.version), 1), Description: o.text, CVEs: o.cves, Overrides: o.allow,
			Builder: "hotpatch " + build().short(), Libraries: o.libraries},
	}
	if r.Meta.Name == "" {
		r.Meta.Name = strings.TrimSuffix(filepath.Base(o.out), ".so")
	}
	if err := patchfile.CheckName(r.Meta.Name); err != nil {
		return err
	}
	for i := range o.pre {
		r.Pairs = append(r.Pairs, hotbuild.Pair{Pre: o.pre[i], Post: o.post[i]})
	}
	if err := patchlink.CheckOutput(o.out); err != nil {
		return err
	}
	ctx, stop := a.interruptible(cmd.Context())
	defer stop()
	work, done, err := o.work()
	if err != nil {
		return err
	}
	defer done()
	if o.pid != 0 {
		if r.Bases, err = hotbuild.FromProcess(int(o.pid), filepath.Join(work, "bases")); err != nil {
			return err
		}
	}
	for _, path := range o.bases {
		r.Bases = append(r.Bases, hotbuild.Base{Path: path})
	}
	hotbuild.AddDebug(r.Bases, o.debug)
	result, err := o.make(ctx, r, work)
	if errors.Is(err, context.Canceled) {
		return &fault.Error{Kind: fault.Failed, Code: "interrupted", What: "cannot go on", Why: "hotpatch was interrupted by a signal; there is no patch"}
	}
	if err != nil {
		return err
	}
	a.answer(result, func(p *page) { showBuilt(p, result) })
	return nil
}

func (o *buildOptions) make(ctx context.Context, r hotbuild.Request, work string) (*hotbuild.Result, error) {
	jobs := int(o.jobs)
	if jobs == 0 {
		jobs = runtime.NumCPU()
	}
	var patches []sourcetree.Patch
	for _, p := range o.patches {
		patches = append(patches, sourcetree.Patch{Path: p, Strip: int(o.strip)})
	}
	switch {
	case o.deb != "":
		return hotbuild.FromDebian(ctx, r, hotbuild.Debian{Dsc: o.deb, Patches: patches, Command: o.command, Plain: !o.watched, Jobs: jobs, Work: work})
	case o.source != "":
		return hotbuild.FromSource(ctx, r, hotbuild.Source{Tree: o.source, Patches: patches, Command: o.command, Jobs: jobs, Work: work})
	}
	return hotbuild.Pairs(ctx, r)
}

// work makes the directory for everything that is not kept.
func (o *buildOptions) work() (dir string, done func(), err error) {
	if o.keepWork != "" {
		if err := os.Mkdir(o.keepWork, 0o700); err != nil {
			return "", nil, usage("--keep-work: %v", err)
		}
		dir, err := filepath.Abs(o.keepWork)
		return dir, func() {}, err
	}
	dir, err = os.MkdirTemp("", "hotpatch-build-")
	if err != nil {
		return "", nil, usage("no directory for temporary files: %v", err)
	}
	// What is left behind does no harm, and hides no result.
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

func showBuilt(p *page, r *hotbuild.Result) {
	p.line("%s: %s version %d", r.File, r.Name, r.Version)
	if r.Package != nil {
		showPackage(p, r.Package)
	}
	if s := r.Source; s != nil {
		for _, u := range s.Units {
			if u.New && u.Untaken {
				p.line("  brings %s, of which the base has nothing yet", u.Source)
				continue
			}
			if u.New {
				p.line("  compiled %s, which is new", u.Source)
				continue
			}
			what := "its code differs"
			if !u.Differs {
				what = "its code is the same"
			}
			p.line("  compiled again %s (%s): %s", u.Source, strings.Join(u.Because, ", "), what)
		}
	}
	for _, f := range r.Replaced {
		p.line("  replaces %s (%s): %s", f.Name, f.Module, f.Why)
		if len(f.Inlined) > 0 {
			p.line("    with inlined %s", strings.Join(f.Inlined, ", "))
		}
	}
	for _, name := range r.Absent {
		p.line("  %s has changed too, and the base has no code of it: it was inlined everywhere, or is not used", name)
	}
	p.line("  %s to the base; %s", count(r.Bound, "place refers", "places refer"), imports(r.Imports))
	if len(r.Added) > 0 {
		p.line("  needs %s in addition, with which the build links", strings.Join(r.Added, ", "))
	}
	if s := r.Source; s != nil {
		showLeft(p, s)
	}
	for _, w := range r.Warnings {
		where := ""
		if w.File != "" {
			where = fmt.Sprintf(" (%s:%d)", w.File, w.Line)
		}
		if w.Symbol+where == "" {
			p.warning("%s [%s]", w.Why, w.Code)
			continue
		}
		p.warning("%s%s: %s [%s]", w.Symbol, where, w.Why, w.Code)
	}
}

// showPackage shows what was made of a source package.
func showPackage(p *page, k *hotbuild.Package) {
	p.line("  source package %s %s, built at %s", k.Name, k.Version, k.Place)
	for _, name := range k.TakenOut {
		p.line("  the package has %s: it was taken out of the state before", name)
	}
	if len(k.Moved) > 0 {
		p.line("    (and put back: %s)", strings.Join(k.Moved, ", "))
	}
	for _, b := range k.Rebuilt {
		if b.Equal {
			p.line("  %s is the very file that the package makes (build-id %s): its symbols are used", b.Base, b.BuildID)
		} else {
			p.line("  %s is not the very file that comes out of the package (build-ids %s and %s): its code was compared, function by function", b.Base, b.Running, b.BuildID)
		}
	}
}

// showLeft shows what of a change is not in the patch.
func showLeft(p *page, s *hotbuild.Rebuilt) {
	for _, u := range s.Elsewhere {
		if u.Untaken {
			p.line("  left out: %s, of which the linker has taken nothing into %s", u.Source, strings.Join(u.Linked, ", "))
			continue
		}
		where := "nothing that is known"
		if len(u.Linked) > 0 {
			where = strings.Join(u.Linked, ", ")
		}
		p.line("  left out: %s, which is linked into %s and into none of the bases", u.Source, where)
	}
	if len(s.Unread) > 0 {
		p.line("  no compiler reads %s", strings.Join(s.Unread, ", "))
	}
}

func imports(names []string) string {
	if len(names) == 0 {
		return "nothing is left to the dynamic linker"
	}
	return "the dynamic linker finds " + strings.Join(names, ", ")
}
