package main

import (
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"hotpatch/internal/engine"
)

func newList(a *app) *cobra.Command {
	var pid pidFlag
	cmd := &cobra.Command{
		Use:   "list [--pid PID] [flags]",
		Short: "list the patches in a process, or in every process of the host",
		Long: `List the patches in a process, or in every process of the host.

The record is read from the memory of each process, and compared with the places
that were rewritten. Nothing is attached to, stopped or changed.

States: active; shadowed (later patches have replaced all its functions again);
inert (reverted, its library still mapped); altered (memory is not what the
record says; hotpatch verify shows where).`,
		Example: `  hotpatch list
  hotpatch list --pid 4711      # with the functions
  hotpatch list --json | jq -r '.result.processes[].pid'`,
		Annotations: exits(0, 1, 2, 5, 6),
		Args:        noArgs,
		RunE:        a.start(func(*cobra.Command, []string) error { return a.list(int(pid)) }),
	}
	pid.add(cmd, "only this process")
	a.addJSON(cmd)
	completePID(cmd, true)
	return cmd
}

func (a *app) list(pid int) error {
	h, err := survey(pid, engine.List, false)
	if err != nil {
		return err
	}
	a.answer(h, func(p *page) { showList(p, h, pid != 0) })
	if !a.json {
		a.tellUnseen(h)
	}
	return nil
}

// survey looks at one process, or at all if pid is 0.
func survey(pid int, one func(int) (*engine.ProcessState, error), deep bool) (*engine.HostState, error) {
	if pid == 0 {
		return engine.ListAll(deep)
	}
	s, err := one(pid)
	if err != nil {
		return nil, err
	}
	return &engine.HostState{Processes: []*engine.ProcessState{s}, Examined: 1}, nil
}

// tellUnseen says what a look at the whole host has not seen.
func (a *app) tellUnseen(h *engine.HostState) {
	if h.Inaccessible > 0 {
		hint := ""
		if os.Geteuid() != 0 {
			hint = "; root sees more"
		}
		a.tell("%s may not be looked at%s", count(h.Inaccessible, "process", "processes"), hint)
	}
}

func showList(p *page, h *engine.HostState, detail bool) {
	if !anyPatch(h) {
		if detail {
			s := h.Processes[0]
			p.line("process %d (%s) has no patches", s.PID, s.Program)
		} else {
			p.line("no process has patches (%d looked at)", h.Examined)
		}
		return
	}
	t := newTable("PID", "PROGRAM", "PATCH", "VERSION", "STATE", "FUNCTIONS", "APPLIED", "CVES")
	for _, s := range h.Processes {
		for _, k := range s.Patches {
			row := t.add(strconv.Itoa(s.PID), s.Program, k.Name, strconv.FormatUint(k.Version, 10), k.State,
				strconv.Itoa(len(k.Functions)), timestamp(k.AppliedAt), strings.Join(k.CVEs, " "))
			if detail && k.Kept != "" {
				row.note("note: its library is still mapped: %s", k.Kept)
			}
		}
	}
	if len(t.rows) > 0 {
		p.table(t)
	}
	for _, s := range h.Processes {
		if detail {
			showFunctions(p, s)
		}
		showTrouble(p, s)
	}
}

// anyPatch reports whether there is anything to be shown.
func anyPatch(h *engine.HostState) bool {
	for _, s := range h.Processes {
		if len(s.Patches) > 0 || s.Interrupted || s.Error != "" {
			return true
		}
	}
	return false
}

// showFunctions prints what each patch of a process replaces; an inert one
// replaces nothing.
func showFunctions(p *page, s *engine.ProcessState) {
	for _, k := range s.Patches {
		if k.State == "inert" || len(k.Functions) == 0 {
			continue
		}
		p.gap()
		title := printf("%s version %d", k.Name, k.Version)
		if k.Description != "" {
			title += ": " + k.Description
		}
		p.title("%s", title)
		t := newTable("FUNCTION", "MODULE", "METHOD", "OLD", "NEW")
		for _, f := range k.Functions {
			row := t.add(f.Function, f.Module, f.Method, f.Old.String(), f.New.String())
			if !f.InForce {
				row.note("note: a later patch has replaced it again")
			}
		}
		p.table(t)
	}
}

// showTrouble prints what is wrong with a process, in a line each.
func showTrouble(p *page, s *engine.ProcessState) {
	if s.Error != "" {
		p.warning("process %d: %s", s.PID, s.Error)
	}
	if s.Interrupted {
		p.warning("process %d: a change is not finished; unless a hotpatch is at work, the next apply or revert settles it", s.PID)
	}
	if n := len(s.Differences); n > 0 {
		p.warning("process %d: memory is not what the record says in %s; hotpatch verify --pid %d shows where", s.PID, count(n, "place", "places"), s.PID)
	}
}
