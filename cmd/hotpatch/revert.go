package main

import (
	"time"

	"github.com/spf13/cobra"

	"hotpatch/internal/engine"
)

type revertOptions struct {
	pid     pidFlag
	all     bool
	dryRun  bool
	unload  bool
	noHooks bool
	timeout timeoutFlag
	quiet   quietFlags
}

// defaultSearch is how long a process may be stopped while its memory is looked
// through, unless the user says otherwise.
const defaultSearch = 100 * time.Millisecond

func newRevert(a *app) *cobra.Command {
	var o revertOptions
	cmd := &cobra.Command{
		Use:   "revert --pid PID [flags] {NAME[@VERSION]... | --all}",
		Short: "take patches out of a process",
		Long: `Take patches out of a process, in any order, all at one instant.

What a later patch has replaced again stays as the later patch has it. After the
last patch of a function is out, its bytes are the original ones. The library of
a patch stays mapped, since a thread may still be inside it, and is used again if
the patch comes back. With --unload it is taken out too, if nothing refers to it;
to prove that, the process is stopped while its memory is looked through, for
100 milliseconds at most unless --max-pause says otherwise.`,
		Example: `  hotpatch revert --pid 4711 fix-login
  hotpatch revert --pid 4711 fix-login@2
  hotpatch revert --pid 4711 --all
  hotpatch revert --pid 4711 --all --unload --max-pause 20ms`,
		Annotations: exits(0, 1, 2, 3, 4, 5, 6),
		RunE:        a.start(func(cmd *cobra.Command, args []string) error { return a.revert(cmd, &o, args) }),
	}
	o.pid.add(cmd, "the process to take patches out of")
	f := cmd.Flags()
	f.BoolVar(&o.all, "all", false, "take out every patch")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "print what would be done; touch nothing")
	f.BoolVar(&o.unload, "unload", false, "also unmap the libraries of the patches, if nothing refers to them")
	f.BoolVar(&o.noHooks, "no-hooks", false, "do not run the hooks of the patches: for one whose hook refuses")
	o.timeout.add(cmd)
	o.quiet.add(cmd, "stack: no thread may be in the code of a patch that is taken out, or\nreturn into it; entry: not in the bytes that are overwritten (default\nstack)")
	a.addJSON(cmd)
	completePID(cmd, true)
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return patchesOf(int(o.pid), args), cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}

func (a *app) revert(cmd *cobra.Command, o *revertOptions, names []string) error {
	pid, err := o.pid.need()
	switch {
	case err != nil:
		return err
	case len(names) == 0 && !o.all:
		return usage("no patch given: name some, or say --all")
	case len(names) > 0 && o.all:
		return usage("--all and the patch %q are given: one or the other", names[0])
	}
	if err := o.quiet.check(); err != nil {
		return err
	}
	ctx, ready, stop := a.interruptibleSoon(cmd.Context())
	defer stop()
	a.changes = !o.dryRun
	req := a.request(pid, o.timeout, o.dryRun)
	req.Begin = ready
	o.quiet.set(&req)
	req.NoHooks = o.noHooks
	req.Unload, req.MaxSearch = o.unload, defaultSearch
	if cmd.Flags().Changed("max-pause") {
		req.MaxSearch = req.MaxPause
	}
	r, err := engine.Revert(ctx, req, names, o.all)
	if r != nil {
		a.answer(r, func(p *page) { showReverted(p, r) })
	}
	return err
}

func showReverted(p *page, r *engine.RevertResult) {
	where := printf("process %d (%s)", r.PID, r.Program)
	switch r.State {
	case "nothing-applied":
		p.line("%s has no patches to take out", where)
		showUnloaded(p, r)
		return
	case "reverted":
		p.title("%s: %s taken out, %s changed", where, count(len(r.Reverted), "patch", "patches"), count(r.Sites, "place", "places"))
	case "would-revert":
		p.title("%s: %s would be taken out, %s changed", where, count(len(r.Reverted), "patch", "patches"), count(r.Sites, "place", "places"))
	default:
		return // the errors say it
	}
	t := newTable("PATCH", "VERSION", "FUNCTIONS", "APPLIED")
	for _, k := range r.Reverted {
		t.add(k.Name, printf("%d", k.Version), printf("%d", len(k.Functions)), timestamp(k.AppliedAt))
	}
	p.table(t)
	for _, n := range r.Notes {
		p.warning("%s", n)
	}
	if r.State == "reverted" {
		p.line("%s", stopped(r.PauseMicroseconds, r.Threads, r.Tries))
	}
	showUnloaded(p, r)
}

// showUnloaded prints what became of the libraries.
func showUnloaded(p *page, r *engine.RevertResult) {
	for _, name := range r.Unloaded {
		p.line("unloaded: %s", name)
	}
	for _, k := range r.Kept {
		p.line("still mapped: %s: %s", k.Patch, k.Why)
	}
}
