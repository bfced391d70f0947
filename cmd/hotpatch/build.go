package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	hotbuild "hotpatch/internal/build"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/patchfile"
	"hotpatch/internal/patchlink"
)

type buildOptions struct {
	pre, post []string
	bases     []string
	debug     []string
	allow     []string
	libraries []string
	out       string
	name      string
	version   versionFlag
	text      string
	cves      []string
}

func newBuild(a *app) *cobra.Command {
	var o buildOptions
	cmd := &cobra.Command{
		Use:   "build --pre A.o --post B.o --base BINARY -o FIX.so [flags]",
		Short: "make a patch from object files before and after a change",
		Long: `Make a patch from object files before and after a change of the source.

Both must come from the same compiler with the same flags, among them
-ffunction-sections and -fdata-sections. Their code is compared, instruction by
instruction; the functions that differ, and what is new, become the patch. Where
everything else is, the base says: the program or the library that runs. It needs
no symbols, since the code before the change is found in it; if that is not there,
the base was built from another source, and is refused.

What a patch cannot do is refused with file, line and symbol: another initial value
or size of existing data, another layout of types, another vtable, and so on. Some of
it can be allowed by name, which is recorded in the patch.`,
		Example: `  hotpatch build --pre old/parse.o --post new/parse.o --base /usr/sbin/served -o fix.so
  hotpatch build --pre a.o --post a2.o --pre b.o --post b2.o --base served --base libserve.so.1 -o fix.so`,
		Annotations: exits(0, 1, 2, 4, 7),
		Args:        noArgs,
		RunE:        a.start(func(cmd *cobra.Command, _ []string) error { return a.build(cmd, &o) }),
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.pre, "pre", nil, "an object file before the change; can be repeated, with a --post\nfor each, in the same order")
	f.StringArrayVar(&o.post, "post", nil, "the same object file after the change")
	f.StringArrayVar(&o.bases, "base", nil, "the program or library that runs; can be repeated")
	f.StringArrayVar(&o.debug, "debug", nil, "a separate debug file of a base; can be repeated")
	f.StringVarP(&o.out, "output", "o", "", "the patch library to be written")
	f.StringVar(&o.name, "name", "", "the patch's name (default: that of the output)")
	f.Var(&o.version, "patch-version", "the patch's version (default 1)")
	f.StringVar(&o.text, "description", "", "one line about the patch")
	f.StringArrayVar(&o.cves, "cve", nil, "a CVE identifier that the patch is for; can be repeated")
	f.StringArrayVar(&o.libraries, "library", nil, "a library that new code needs in addition, as for the compiler's\n-l, or a path; can be repeated")
	f.StringArrayVar(&o.allow, "allow", nil, "allow what would be refused: "+strings.Join(objdiff.Overrides, ",\n")+"; can be repeated")
	for flag, name := range map[string]string{"pre": "A.o", "post": "B.o", "base": "BINARY", "debug": "FILE", "output": "FIX.so", "name": "NAME",
		"description": "TEXT", "cve": "ID", "library": "LIB", "allow": "NAME"} {
		argument(cmd, flag, name)
	}
	a.addJSON(cmd)
	completeFlag(cmd, "allow", objdiff.Overrides...)
	return cmd
}

func (a *app) build(cmd *cobra.Command, o *buildOptions) error {
	switch {
	case len(o.pre) == 0:
		return usage("no object files given: --pre A.o --post B.o")
	case len(o.pre) != len(o.post):
		return usage("%d times --pre and %d times --post are given", len(o.pre), len(o.post))
	case len(o.bases) == 0:
		return usage("no base given: --base BINARY")
	case o.out == "":
		return usage("no output given: -o FIX.so")
	}
	r := hotbuild.Request{
		Allow: o.allow, Out: o.out, Progress: a.tell,
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
	for _, path := range o.bases {
		r.Bases = append(r.Bases, hotbuild.Base{Path: path, Debug: o.debug})
	}
	ctx, stop := a.interruptible(cmd.Context())
	defer stop()
	result, err := hotbuild.Pairs(ctx, r)
	if err != nil {
		return err
	}
	a.answer(result, func(p *page) { showBuilt(p, result) })
	return nil
}

func showBuilt(p *page, r *hotbuild.Result) {
	p.line("%s: %s version %d", r.File, r.Name, r.Version)
	for _, f := range r.Replaced {
		p.line("  replaces %s (%s): %s", f.Name, f.Module, f.Why)
		if len(f.Inlined) > 0 {
			p.line("    with inlined %s", strings.Join(f.Inlined, ", "))
		}
	}
	for _, name := range r.Absent {
		p.line("  %s has changed too, and the base has no code of it: it was inlined everywhere, or is not used", name)
	}
	p.line("  %d places refer to the base; %s", r.Bound, imports(r.Imports))
	for _, w := range r.Warnings {
		where := ""
		if w.File != "" {
			where = fmt.Sprintf(" (%s:%d)", w.File, w.Line)
		}
		p.warning("%s%s: %s [%s]", w.Symbol, where, w.Why, w.Code)
	}
}

func imports(names []string) string {
	if len(names) == 0 {
		return "nothing is left to the dynamic linker"
	}
	return "the dynamic linker finds " + strings.Join(names, ", ")
}
