package main

import (
	"strings"

	"github.com/spf13/cobra"

	"hotpatch/internal/engine"
)

type stacksOptions struct {
	pid     pidFlag
	timeout timeoutFlag
}

func newStacks(a *app) *cobra.Command {
	var o stacksOptions
	cmd := &cobra.Command{
		Use:   "stacks --pid PID [flags]",
		Short: "show what every thread of a process is in",
		Long: `Show the call chains of all threads of a process, as hotpatch sees them when it
decides who is in the way. Each thread is stopped for the moment in which its
stack is walked. A chain that does not go down to where the thread began says why.`,
		Example: `  hotpatch stacks --pid 4711
  hotpatch stacks --pid 4711 --json`,
		Annotations: exits(0, 1, 2, 3, 5, 6),
		Args:        noArgs,
		RunE:        a.start(func(cmd *cobra.Command, _ []string) error { return a.stacks(cmd, &o) }),
	}
	o.pid.add(cmd, "the process to look at")
	o.timeout.add(cmd)
	cmd.Flags().Lookup("timeout").Usage = "how long to wait for another hotpatch"
	a.addJSON(cmd)
	completePID(cmd, false)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

// stacksResult is the result of stacks.
type stacksResult struct {
	Threads []engine.ThreadStack `json:"threads"`
}

func (a *app) stacks(cmd *cobra.Command, o *stacksOptions) error {
	pid, err := o.pid.need()
	if err != nil {
		return err
	}
	ctx, stop := a.interruptible(cmd.Context())
	defer stop()
	threads, err := engine.Stacks(ctx, a.request(pid, o.timeout, false))
	if err != nil {
		return err
	}
	a.answer(stacksResult{threads}, func(p *page) {
		for i := range threads {
			showStack(p, &threads[i])
		}
	})
	return nil
}

func showStack(p *page, s *engine.ThreadStack) {
	p.gap()
	p.title("thread %d (%s)", s.TID, s.Name)
	for i, c := range s.Chain {
		name := c.Module + "!" + c.Function
		if c.Function == "" {
			name = c.Module
		}
		var notes strings.Builder
		if c.Signal {
			notes.WriteString("  interrupted by a signal")
		}
		p.line("  #%-3d %-18s %s+%#x%s", i, c.PC, name, c.Offset, notes.String())
	}
	if !s.Complete {
		p.line("  not complete: %s", s.Why)
	}
}
