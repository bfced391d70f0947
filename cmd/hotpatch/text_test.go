package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hotpatch/internal/engine"
)

// What the sessions with real processes do not bring about.
func TestTexts(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	patch := engine.PatchState{Name: "fix", Version: 3, State: "active", Description: "a\nb", CVEs: []string{"CVE-2026-1", "CVE-2026-2"}, AppliedAt: at,
		Functions: []engine.Replaced{{Function: "f()", Module: "prog", Method: "entry", Old: 0x10, New: 0x20, InForce: true}}}
	inert := engine.PatchState{Name: "old", Version: 1, State: "inert", AppliedAt: at, Kept: "a thread is inside it", Functions: patch.Functions}
	process := &engine.ProcessState{PID: 7, Program: "prog", Patches: []engine.PatchState{patch, inert}, Interrupted: true, Unpatched: []string{"libx.so!f() at 0x99"},
		Differences: []engine.Difference{{Address: 0x10, Kind: "entry", Function: "f()", Module: "prog", Want: []byte{0xe9, 1}, Have: nil}}}
	damaged := &engine.ProcessState{PID: 8, Error: "its check sum is wrong", ErrorCode: "ledger-damaged"}

	for name, test := range map[string]struct {
		show func(*page)
		want string
	}{
		"list, host": {func(p *page) {
			showList(p, &engine.HostState{Processes: []*engine.ProcessState{process, damaged}, Examined: 5}, false)
		}, `PID  PROGRAM  PATCH  VERSION  STATE   FUNCTIONS  APPLIED               CVES
7    prog     fix    3        active  1          2026-01-02T03:04:05Z  CVE-2026-1 CVE-2026-2
7    prog     old    1        inert   1          2026-01-02T03:04:05Z  -
warning: process 7: a change is not finished; unless a hotpatch is at work, the next apply or revert settles it
warning: process 7: memory is not what the record says in 1 place; hotpatch verify --pid 7 shows where
warning: process 8: its check sum is wrong
`},
		"list, one": {func(p *page) {
			showList(p, &engine.HostState{Processes: []*engine.ProcessState{{PID: 7, Program: "prog", Patches: []engine.PatchState{patch, inert}}}}, true)
		}, `PID  PROGRAM  PATCH  VERSION  STATE   FUNCTIONS  APPLIED               CVES
7    prog     fix    3        active  1          2026-01-02T03:04:05Z  CVE-2026-1 CVE-2026-2
7    prog     old    1        inert   1          2026-01-02T03:04:05Z  -
  note: its library is still mapped: a thread is inside it

fix version 3: a\nb
FUNCTION  MODULE  METHOD  OLD   NEW
f()       prog    entry   0x10  0x20
`},
		"verify": {func(p *page) {
			showVerified(p, &engine.HostState{Processes: []*engine.ProcessState{process, damaged}}, false)
		}, `process 7 (prog): NOT as recorded: 1 function of 1 patch compared with memory
FUNCTION  MODULE  KIND   ADDRESS  WANT   HAVE
f()       prog    entry  0x10     e9 01  unreadable
warning: process 7: libx.so!f() at 0x99 is not patched: it was loaded after the patch
`},
		"verify, nothing": {func(p *page) { showVerified(p, &engine.HostState{Examined: 5}, false) }, "no process has patches (5 looked at)\n"},
		"revert": {func(p *page) {
			r := &engine.RevertResult{PID: 7, Program: "prog", State: "reverted", Reverted: []engine.PatchState{patch}, Sites: 1, Notes: []string{"a hook failed"},
				Unloaded: []string{"fix@3"}, Kept: []engine.KeptState{{Patch: "old@1", Why: "a thread is inside it"}}}
			r.PauseMicroseconds, r.Threads, r.Tries = 35.4, 1, 2
			showReverted(p, r)
		}, `process 7 (prog): 1 patch taken out, 1 place changed
PATCH  VERSION  FUNCTIONS  APPLIED
fix    3        1          2026-01-02T03:04:05Z
warning: a hook failed
stopped: 35 µs (1 thread, 2 tries)
unloaded: fix@3
still mapped: old@1: a thread is inside it
`},
		"apply": {func(p *page) {
			r := &engine.ApplyResult{PID: 7, Program: "prog", Patch: "fix", Version: 3, File: "fix.so", State: "would-apply", NewFunctions: []string{"helper()"},
				Bound: []engine.BoundState{{Symbol: "f.c:x", Address: 0x30}}, Notes: []string{"beware"},
				Replaced: []engine.ReplacedState{{Function: "f()", Module: "prog", Method: "entry", New: 0x20, Notes: []string{"it has clones"},
					Sites: []engine.SiteState{{Address: 0x10, Kind: "entry", Old: []byte{0x55, 0x48}}, {Address: 0x50, Kind: "vtable", Old: []byte{0x10}, Where: "prog vtable for C+0x10"}}}}}
			failed := *r
			failed.State = "failed"
			already := *r
			already.State = "already-applied"
			showApplied(p, []*engine.ApplyResult{r, &failed, &already}, true)
		}, `process 7 (prog): fix version 3 would be applied (fix.so)
FUNCTION  MODULE  METHOD  SITES
f()       prog    entry   2
  0x10 entry: 55 48 -> a jump to the new function (0x20 in the patch)
  0x50 vtable (prog vtable for C+0x10): 10 -> the address of the new function (0x20 in the patch)
  note: it has clones
refers to: f.c:x at 0x30
new in the patch: helper()
warning: beware

process 7 (prog): fix version 3 is applied already (fix.so)
`},
	} {
		p := &page{}
		test.show(p)
		if diff := cmp.Diff(test.want, p.String()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
