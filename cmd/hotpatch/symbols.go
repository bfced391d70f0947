package main

import (
	"github.com/spf13/cobra"

	"hotpatch/internal/engine"
	"hotpatch/internal/fault"
)

type symbolsOptions struct {
	pid       pidFlag
	debugDirs []string
	functions bool
	limit     limitFlag
}

// defaultLimit keeps "symbols '*'" from filling a terminal, or memory.
const defaultLimit = 1000

func newSymbols(a *app) *cobra.Command {
	o := symbolsOptions{limit: defaultLimit}
	cmd := &cobra.Command{
		Use:   "symbols --pid PID [flags] PATTERN",
		Short: "show where the functions and variables of a process live",
		Long: `Show the functions and variables of a process, with the name by which a patch can
mean exactly this one. The pattern is compared with mangled and with demangled
names: it must be a part of the name; with * (any characters) or ? (any one) it
must match the whole name. Nothing is attached to, stopped or changed.`,
		Example: `  hotpatch symbols --pid 4711 parse
  hotpatch symbols --pid 4711 --functions 'Parser::*'
  hotpatch symbols --pid 4711 --json --limit 0 login`,
		Annotations: exits(0, 1, 2, 4, 5, 6),
		Args:        oneArg("pattern"),
		RunE:        a.start(func(_ *cobra.Command, args []string) error { return a.symbols(&o, args[0]) }),
	}
	o.pid.add(cmd, "the process to look at")
	f := cmd.Flags()
	f.Var((*listFlag)(&o.debugDirs), "debug-dir", "look for separate debug files here first; can be repeated")
	f.BoolVar(&o.functions, "functions", false, "functions only")
	f.Var(&o.limit, "limit", "show at most so many; 0: all")
	a.addJSON(cmd)
	argument(cmd, "debug-dir", "DIR")
	completePID(cmd, false)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

// symbolsResult is the result of symbols.
type symbolsResult struct {
	Symbols []engine.SymbolState `json:"symbols"`
	Matched int                  `json:"matched"` // as many match; Symbols has no more than --limit
}

func (a *app) symbols(o *symbolsOptions, pattern string) error {
	pid, err := o.pid.need()
	switch {
	case err != nil:
		return err
	case pattern == "":
		return usage("the pattern is empty; '*' matches every name")
	}
	res := symbolsResult{Symbols: []engine.SymbolState{}}
	err = engine.Symbols(pid, pattern, o.debugDirs, func(s engine.SymbolState) {
		if o.functions && s.Kind == "object" {
			return
		}
		res.Matched++
		if o.limit == 0 || len(res.Symbols) < int(o.limit) {
			res.Symbols = append(res.Symbols, s)
		}
	})
	if err != nil {
		return err
	}
	if res.Matched == 0 {
		return &fault.Error{Kind: fault.Unfit, Code: "no-symbol", What: printf("cannot find %q", pattern), Where: printf("process %d", pid),
			Why: "no name of a symbol matches", Hint: "a pattern without * or ? is looked for anywhere in the name"}
	}
	a.answer(res, func(p *page) { showSymbols(p, res.Symbols) })
	if left := res.Matched - len(res.Symbols); left > 0 {
		a.tell("%d more match; --limit 0 shows all", left)
	}
	return nil
}

func showSymbols(p *page, symbols []engine.SymbolState) {
	t := newTable("ADDRESS", "SIZE", "KIND", "BINDING", "TABLE", "PATCHED BY", "NAME")
	for _, s := range symbols {
		t.add(s.Address.String(), printf("%d", s.Size), s.Kind, s.Binding, s.Table, s.PatchedBy, s.Query)
	}
	p.table(t)
}
