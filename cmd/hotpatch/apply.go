package main

import (
	"errors"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"hotpatch/internal/engine"
	"hotpatch/internal/patchfile"
	"hotpatch/internal/signature"
)

type applyOptions struct {
	pid     pidFlag
	dryRun  bool
	method  string
	options engine.Options
	version versionFlag
	timeout timeoutFlag
	quiet   quietFlags
	trust   trustFlags
}

// trustFlags say whose patches are good enough.
type trustFlags struct {
	key       string // a public key, or a file with one; empty: no signature is required
	signature string // its file; empty: the patch's name and .minisig
	root      bool   // only root may have put the patch where it is
}

var methods = []string{string(engine.Auto), string(engine.Entry), string(engine.VTable)}

func newApply(a *app) *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use:   "apply --pid PID [flags] PATCH.so...",
		Short: "replace functions in a process",
		Long: `Replace functions in a process by those of a patch library.

The library is brought into the process while it runs. Then all its threads are
stopped for some microseconds, and everything is switched at once, if no thread
is inside a function that is replaced or will return into one; otherwise the
threads run on, and it is tried again until the timeout. Several patches are applied one after the other,
each wholly or not at all; the first that cannot be ends the command.

A function is replaced only by a patch of a higher version than the one that
replaced it before. A patch that is applied already is a success.`,
		Example: `  hotpatch apply --pid 4711 fix.so
  hotpatch apply --pid 4711 --dry-run fix.so    # every address, and every refusal
  hotpatch apply --pid 4711 --module libfoo.so.1 fix.so
  hotpatch apply --pid 4711 --timeout 1m --json fix.so`,
		Annotations: exits(0, 1, 2, 3, 4, 5, 6),
		Args:        someArgs("patch library"),
		RunE:        a.start(func(cmd *cobra.Command, args []string) error { return a.apply(cmd, &o, args) }),
	}
	o.pid.add(cmd, "the process to patch")
	f := cmd.Flags()
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "print what would be done, and every reason against it; touch nothing")
	f.StringVar(&o.method, "method", string(engine.Auto), "what to rewrite: entry (the function's code), vtable (the slots\nof virtual functions), or auto (both)")
	f.Var((*listFlag)(&o.options.Modules), "module", "replace functions of this module only (a file or library name);\ncan be repeated")
	f.BoolVar(&o.options.Weak, "weak", false, "also use functions that the patch exports weakly (inline\nfunctions and templates)")
	f.BoolVar(&o.options.AllowAliases, "allow-aliases", false, "also replace functions whose code is shared with another name")
	f.BoolVar(&o.options.AllowInterposed, "allow-interposed", false, "also replace functions of a library of which\ncalls by name use another module's copy")
	f.StringVar(&o.options.Name, "name", "", "name the patch so, instead of what its file says")
	f.Var(&o.version, "patch-version", "give the patch this version, instead of what its file says")
	f.Var((*listFlag)(&o.options.DebugDirs), "debug-dir", "look for separate debug files here first; can be repeated")
	o.timeout.add(cmd)
	o.quiet.add(cmd, "stack: no thread may be in a function that is replaced, or return\ninto it; entry: not in the bytes that are overwritten (default:\nwhat the patch demands, else stack)")
	f.StringVar(&o.trust.key, "require-signature", "", "refuse patches that are not signed with this public key of\nminisign (the file or the key itself); PATCH.so.minisig has the\nsignature")
	f.StringVar(&o.trust.signature, "signature", "", "the file with the signature, if it is another one")
	f.BoolVar(&o.trust.root, "require-root-owner", false, "refuse patches that somebody else than root could have put there")
	argument(cmd, "require-signature", "KEY")
	argument(cmd, "signature", "FILE")
	a.addJSON(cmd)
	argument(cmd, "module", "NAME")
	argument(cmd, "name", "NAME")
	argument(cmd, "debug-dir", "DIR")
	argument(cmd, "method", "METHOD")
	completeFlag(cmd, "method", methods...)
	completePID(cmd, false)
	cmd.ValidArgsFunction = completeLibraries
	return cmd
}

func (a *app) apply(cmd *cobra.Command, o *applyOptions, args []string) error {
	pid, err := o.pid.need()
	if err != nil {
		return err
	}
	flags := cmd.Flags()
	switch {
	case !slices.Contains(methods, o.method):
		return usage("--method is auto, entry or vtable, and not %q", o.method)
	case flags.Changed("name") && o.options.Name == "":
		return usage("--name is empty")
	case len(args) > 1 && (flags.Changed("name") || flags.Changed("patch-version")):
		return usage("--name and --patch-version are for one patch, and %d are given", len(args))
	}
	if err := o.quiet.check(); err != nil {
		return err
	}
	o.options.Method = engine.Method(o.method)
	o.options.Consistency = engine.Consistency(o.quiet.consistency)
	o.options.Version = uint64(o.version)

	switch {
	case flags.Changed("require-signature") && o.trust.key == "":
		return usage("--require-signature is empty")
	case o.trust.signature != "" && o.trust.key == "":
		return usage("--signature is for --require-signature, which is not given")
	case o.trust.signature != "" && len(args) > 1:
		return usage("--signature is for one patch, and %d are given", len(args))
	}
	patches, err := o.trust.open(args)
	if err != nil {
		return err
	}
	ctx, ready, stop := a.interruptibleSoon(cmd.Context())
	defer stop()
	a.changes = !o.dryRun
	req := a.request(pid, o.timeout, o.dryRun)
	req.Begin = ready
	o.quiet.set(&req)
	results, err := engine.Apply(ctx, req, o.options, patches)
	if len(results) > 0 {
		a.answer(applied{results}, func(p *page) { showApplied(p, results, o.dryRun) })
	}
	return err
}

// applied is the result of apply.
type applied struct {
	Patches []*engine.ApplyResult `json:"patches"`
}

// open opens patch libraries that are good enough; all that cannot be used are reported.
func (f *trustFlags) open(paths []string) ([]*patchfile.Patch, error) {
	var key *signature.Key
	if f.key != "" {
		var err error
		if key, err = signature.ParseKey(f.key); err != nil {
			return nil, err
		}
	}
	var owner func(*os.File) error
	if f.root {
		owner = signature.RootOwned
	}
	var patches []*patchfile.Patch
	var errs []error
	for _, path := range paths {
		p, err := f.openOne(path, owner, key)
		patches = append(patches, p)
		errs = append(errs, err)
	}
	return patches, errors.Join(errs...)
}

// openOne reads a file once. What is checked is what was read, and what was read is what
// goes into the process.
func (f *trustFlags) openOne(path string, owner func(*os.File) error, key *signature.Key) (*patchfile.Patch, error) {
	data, err := patchfile.Read(path, owner)
	if err != nil {
		return nil, err
	}
	if key != nil {
		if err := key.Check(path, data, f.signature); err != nil {
			return nil, err
		}
	}
	return patchfile.Parse(path, data)
}

// request is what apply and revert tell the engine of themselves.
func (a *app) request(pid int, timeout timeoutFlag, dryRun bool) engine.Request {
	return engine.Request{
		PID: pid, Timeout: time.Duration(timeout), DryRun: dryRun,
		Waiting: func() { a.tell("another hotpatch is at work in process %d: waiting for it", pid) },
	}
}

func showApplied(p *page, results []*engine.ApplyResult, dryRun bool) {
	for _, r := range results {
		switch r.State {
		case "already-applied":
			p.gap()
			p.line("process %d (%s): %s version %d is applied already (%s)", r.PID, r.Program, r.Patch, r.Version, r.File)
		case "applied":
			p.gap()
			p.title("process %d (%s): %s version %d applied (%s)", r.PID, r.Program, r.Patch, r.Version, r.File)
			showReplaced(p, r, false)
			p.line("%s", stopped(r.PauseMicroseconds, r.Threads, r.Tries))
		case "would-apply":
			p.gap()
			p.title("process %d (%s): %s version %d would be applied (%s)", r.PID, r.Program, r.Patch, r.Version, r.File)
			showReplaced(p, r, true)
		case "refused":
			// The errors say why; whoever asked for the plan gets what there is of it.
			if !dryRun || len(r.Replaced) == 0 {
				continue
			}
			p.gap()
			p.title("process %d (%s): %s version %d cannot be applied (%s); the plan so far:", r.PID, r.Program, r.Patch, r.Version, r.File)
			showReplaced(p, r, true)
		}
	}
}

// stopped says how long the process was stopped.
func stopped(us float64, threads, tries int) string {
	return printf("stopped: %s (%s, %s)", microseconds(us), count(threads, "thread", "threads"), count(tries, "try", "tries"))
}

// showReplaced prints the functions of a patch; sites says whether with every
// place that is rewritten.
func showReplaced(p *page, r *engine.ApplyResult, sites bool) {
	t := newTable("FUNCTION", "MODULE", "METHOD", "SITES")
	for _, f := range r.Replaced {
		row := t.add(f.Function, f.Module, f.Method, printf("%d", len(f.Sites)))
		for _, s := range f.Sites {
			if sites {
				row.note("%s", site(f, s))
			}
		}
		for _, n := range f.Notes {
			row.note("note: %s", n)
		}
	}
	p.table(t)
	if sites {
		for _, b := range r.Bound {
			p.line("refers to: %s at %s", b.Symbol, b.Address)
		}
	}
	for _, name := range r.NewFunctions {
		p.line("new in the patch: %s", name)
	}
	for _, n := range r.Notes {
		p.warning("%s", n)
	}
}

// site says what is overwritten by what.
func site(f engine.ReplacedState, s engine.SiteState) string {
	place := s.Kind
	if s.Where != "" {
		place += " (" + s.Where + ")"
	}
	what := "a jump to the new function"
	if s.Kind == "vtable" {
		what = "the address of the new function"
	}
	return printf("%s %s: %s -> %s (%s in the patch)", s.Address, place, hexBytes(s.Old), what, f.New)
}
