package main

import (
	"strings"

	"github.com/spf13/cobra"

	"hotpatch/internal/engine"
	"hotpatch/internal/fault"
)

func newVerify(a *app) *cobra.Command {
	var pid pidFlag
	cmd := &cobra.Command{
		Use:   "verify [--pid PID] [flags]",
		Short: "compare the memory of patched processes with what was recorded",
		Long: `Compare the memory of a process, or of every patched process of the host, with
what was recorded when it was patched: every rewritten place, byte by byte.
Nothing is attached to, stopped or changed.

Libraries that were opened after a patch, with functions that the patch replaces
elsewhere, are shown as a warning: their functions are the old ones.`,
		Example: `  hotpatch verify
  hotpatch verify --pid 4711
  hotpatch verify --json | jq '.result.processes[].differences'`,
		Annotations: exits(0, 1, 2, 5, 6),
		Args:        noArgs,
		RunE:        a.start(func(*cobra.Command, []string) error { return a.verify(int(pid)) }),
	}
	pid.add(cmd, "only this process")
	a.addJSON(cmd)
	completePID(cmd, true)
	return cmd
}

func (a *app) verify(pid int) error {
	h, err := survey(pid, engine.Verify, true)
	if err != nil {
		return err
	}
	a.answer(h, func(p *page) { showVerified(p, h, pid != 0) })
	if !a.json {
		a.tellUnseen(h)
	}
	var found fault.List
	for _, s := range h.Processes {
		if e := notAsRecorded(s); e != nil {
			found = append(found, e)
		}
	}
	return found.ErrOrNil()
}

// notAsRecorded is the fault of a process that is not what its record says; nil
// if it is.
func notAsRecorded(s *engine.ProcessState) *fault.Error {
	e := &fault.Error{Kind: fault.Differs, What: printf("process %d is not as recorded", s.PID), Where: s.Program}
	switch {
	case s.Error != "":
		// That of List, which another process must not hide.
		e.Code, e.What, e.Why = "unexpected", printf("cannot check process %d", s.PID), s.Error
		if s.ErrorCode != "" {
			e.Code = s.ErrorCode
		}
		if !strings.HasPrefix(e.Code, "ledger-") {
			e.Kind = fault.Failed
		}
	case s.Altered():
		e.Code, e.Why = "altered", printf("memory differs in %s", count(len(s.Differences), "place", "places"))
		e.Hint = "somebody else has written there: a debugger, a uprobe or another patcher"
	case s.Interrupted:
		e.Code, e.Why = "unfinished", "a change is not finished"
		e.Hint = "unless a hotpatch is at work in it, the next apply or revert settles it"
	default:
		return nil
	}
	return e
}

func showVerified(p *page, h *engine.HostState, one bool) {
	if !anyPatch(h) {
		showList(p, h, one)
		return
	}
	for _, s := range h.Processes {
		if s.Error != "" {
			continue // there is nothing to show but the error
		}
		functions, patches := 0, 0
		for _, k := range s.Patches {
			if k.State != "inert" {
				functions += len(k.Functions)
				patches++
			}
		}
		verdict := "as recorded"
		if notAsRecorded(s) != nil {
			verdict = "NOT as recorded"
		}
		what := "no patch is in force; the original code was compared with memory"
		if patches > 0 {
			what = printf("%s of %s compared with memory", count(functions, "function", "functions"), count(patches, "patch", "patches"))
		}
		p.line("process %d (%s): %s: %s", s.PID, s.Program, verdict, what)
		showDifferences(p, s.Differences)
		for _, f := range s.Unpatched {
			p.warning("process %d: %s is not patched: it was loaded after the patch", s.PID, f)
		}
	}
}

func showDifferences(p *page, differences []engine.Difference) {
	if len(differences) == 0 {
		return
	}
	t := newTable("FUNCTION", "MODULE", "KIND", "ADDRESS", "WANT", "HAVE")
	for _, d := range differences {
		have := hexBytes(d.Have)
		if len(d.Have) == 0 {
			have = "unreadable"
		}
		t.add(d.Function, d.Module, d.Kind, d.Address.String(), hexBytes(d.Want), have)
	}
	p.table(t)
}
