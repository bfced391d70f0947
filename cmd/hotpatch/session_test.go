package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/engine"
	"hotpatch/internal/testtarget"
)

// seed starts the seed program, with 4 threads that call all the time.
func seed(t *testing.T) (p *testtarget.Process, pid string) {
	t.Helper()
	p = testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: []string{"seed.cc"}, Flags: []string{"-O2"}}), testtarget.Args("-q", "4", "1"))
	return p, strconv.Itoa(p.PID())
}

func seedPatch(t *testing.T, version int) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Sources: []string{fmt.Sprintf("seed_p%d.cc", version)}, Flags: []string{"-O2"}, Shared: true})
}

// runs asks the seed which version all its threads see.
func runs(t *testing.T, p *testtarget.Process, version int) {
	t.Helper()
	want := fmt.Sprintf("now method %d virtual %d function %d threads 4", version, version, version)
	if got := p.Ask("now", "^now"); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// says runs hotpatch, which must end with the status, and print lines that match
// the patterns, in this order; on standard error if the status is not 0.
func says(t *testing.T, status int, args []string, patterns ...string) testtarget.Result {
	t.Helper()
	r := testtarget.Run(t, args...)
	text, other := r.Stdout, r.Stderr
	if status != 0 {
		text, other = other, ""
	}
	ok := r.Exit == status && other == ""
	for _, pattern := range patterns {
		at := regexp.MustCompile("(?m)^" + pattern + "$").FindStringIndex(text)
		if at == nil {
			ok = false
			t.Errorf("no line (or not in its place) matches %s", pattern)
			continue
		}
		text = text[at[1]:]
	}
	if !ok {
		t.Errorf("want status %d\n%v", status, r)
	}
	return r
}

// The life of a patch, as a person sees it.
func TestSession(t *testing.T) {
	t.Parallel()
	p, pid := seed(t)
	p1, p2 := seedPatch(t, 1), seedPatch(t, 2)
	args := func(a ...string) []string { return append([]string{a[0], "--pid", pid}, a[1:]...) }
	const program = `process \d+ \(seed\)`

	says(t, 0, args("list"), program+` has no patches`)
	says(t, 0, args("verify"), program+` has no patches`)
	says(t, 0, args("revert", "--all"), program+` has no patches to take out`)
	says(t, 4, args("revert", "seed"), `hotpatch: cannot revert "seed" .*\[not-applied\]`, `hint: .*`)
	says(t, 0, args("symbols", "--functions", "DemoClass::*"), `ADDRESS +SIZE +KIND +BINDING +TABLE +PATCHED BY +NAME`, `0x[0-9a-f]+ +\d+ +function +global +\.symtab +- +seed!DemoClass::say_hello\(int, .*\)`)
	says(t, 4, args("symbols", "no_such_thing_anywhere"), `hotpatch: cannot find "no_such_thing_anywhere" \(process \d+\): .*\[no-symbol\]`)
	limited := testtarget.Run(t, args("symbols", "--limit", "1", "say_hello")...)
	if limited.Exit != 0 || strings.Count(limited.Stdout, "\n") != 2 || !strings.Contains(limited.Stderr, "2 more match; --limit 0 shows all") {
		t.Errorf("%v", limited)
	}

	before := testtarget.TextSnapshot(t, p.PID())
	says(t, 0, args("apply", "--dry-run", p1), program+`: seed version 1 would be applied \(.*\)`, `FUNCTION +MODULE +METHOD +SITES`,
		`  0x[0-9a-f]+ entry: ([0-9a-f]{2} ?)+ -> a jump to the new function \(0x[0-9a-f]+ in the patch\)`)
	refused := testtarget.Run(t, args("apply", "--dry-run", "--method", "vtable", p1)...)
	if refused.Exit != 4 || strings.Count(refused.Stderr, "[no-vtable-slot]") != 2 || !strings.Contains(refused.Stdout, "the plan so far") || !strings.Contains(refused.Stdout, " vtable (seed vtable for DemoVirtual+0x20): ") {
		t.Errorf("a plan with two refusals\n%v", refused)
	}
	refused = testtarget.Run(t, args("apply", "--method", "vtable", p1)...)
	if refused.Exit != 4 || strings.Count(refused.Stderr, "[no-vtable-slot]") != 2 || refused.Stdout != "" {
		t.Errorf("two refusals\n%v", refused)
	}
	if diff := testtarget.Diff(before, testtarget.TextSnapshot(t, p.PID())); len(diff) > 0 {
		t.Errorf("the process was changed: %q", diff)
	}
	runs(t, p, 0)

	const stopped = `stopped: \d+(\.\d+)? (µs|ms|s) \(4 threads, \d+ (try|tries)\)`
	says(t, 0, args("apply", p1), program+`: seed version 1 applied \(.*seed_p1\.so\)`, `FUNCTION +MODULE +METHOD +SITES`, stopped)
	runs(t, p, 1)
	says(t, 0, args("apply", p1), program+`: seed version 1 is applied already \(.*\)`)
	says(t, 0, args("list"), `PID +PROGRAM +PATCH +VERSION +STATE +FUNCTIONS +APPLIED +CVES`, pid+` +seed +seed +1 +active +3 +20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ +-`,
		`seed version 1`, `FUNCTION +MODULE +METHOD +OLD +NEW`, `DemoClass::say_hello\(int, .*\)`)
	says(t, 0, args("verify"), program+`: as recorded: 3 functions of 1 patch compared with memory`)
	says(t, 0, args("symbols", "say_hello_fun"), `.* seed@1 +seed!say_hello_fun\(.*\)`)

	says(t, 0, args("apply", p2), program+`: seed version 2 applied \(.*\)`)
	runs(t, p, 2)
	says(t, 4, args("apply", p1), `hotpatch: cannot .*\[not-newer\]`, `hint: .*`)
	says(t, 0, args("list"), pid+` +seed +seed +1 +shadowed .*`, pid+` +seed +seed +2 +active .*`, `  note: a later patch has replaced it again`)
	host := testtarget.Run(t, "list")
	if host.Exit != 0 || !regexp.MustCompile(`(?m)^`+pid+` +seed +seed +2 +active `).MatchString(host.Stdout) {
		t.Errorf("the host's list\n%v", host)
	}
	complete := testtarget.Run(t, "__complete", "revert", "--pid", pid, "")
	if !strings.HasPrefix(complete.Stdout, "seed\n") {
		t.Errorf("%v", complete)
	}

	says(t, 0, args("revert", "--dry-run", "seed@1"), program+`: 1 patch would be taken out, \d+ places? changed`)
	runs(t, p, 2)
	says(t, 0, args("revert", "seed@2"), program+`: 1 patch taken out, \d+ places changed`, `PATCH +VERSION +FUNCTIONS +APPLIED`, `seed +2 +3 +.*`, stopped)
	runs(t, p, 1)
	says(t, 0, args("revert", "--all"), program+`: 1 patch taken out, \d+ places changed`)
	runs(t, p, 0)
	says(t, 0, args("list"), pid+` +seed +seed +1 +inert .*`, pid+` +seed +seed +2 +inert .*`)
	says(t, 0, args("verify"), program+`: as recorded: no patch is in force; .*`)
	p.Healthy(t)
}

// The same as a program sees it.
func TestSessionJSON(t *testing.T) {
	t.Parallel()
	p, pid := seed(t)
	p1 := seedPatch(t, 1)
	ask := func(status int, result any, args ...string) answered {
		t.Helper()
		var a answered
		r := testtarget.RunJSON(t, &a, append([]string{args[0], "--pid", pid}, args[1:]...)...)
		if r.Exit != status || a.OK != (status == 0) || (a.Error == nil) != a.OK || a.Schema != 1 || a.Command != args[0] || r.Stderr != "" {
			t.Errorf("want status %d\n%v", status, r)
		}
		if result != nil {
			if err := json.Unmarshal(a.Result, result); err != nil {
				t.Fatalf("%v\n%v", err, r)
			}
		}
		return a
	}
	// What the engine marshals as text, such as addresses, is text here.
	type site struct{ Address, Kind, Old, Where string }
	type patch struct {
		PID      int
		Program  string
		Patch    string
		Version  uint64
		State    string
		Replaced []struct {
			Function string
			Mangled  []string
			Module   string
			Method   string
			Sites    []site
		}
		Pause   float64 `json:"pause_us"`
		Tries   int
		Threads int
	}
	var plan struct{ Patches []patch }
	ask(0, &plan, "apply", "--dry-run", p1)
	if len(plan.Patches) != 1 || plan.Patches[0].State != "would-apply" || len(plan.Patches[0].Replaced) != 3 || plan.Patches[0].Pause != 0 {
		t.Fatalf("%+v", plan)
	}
	for _, f := range plan.Patches[0].Replaced {
		if f.Module != "seed" || len(f.Mangled) == 0 || !strings.HasPrefix(f.Mangled[0], "_Z") || len(f.Sites) == 0 || !strings.HasPrefix(f.Sites[0].Address, "0x") || len(f.Sites[0].Old) < 10 {
			t.Errorf("%+v", f)
		}
	}
	refused := ask(4, &plan, "apply", "--dry-run", "--method", "vtable", p1)
	if len(refused.Errors) != 2 || refused.Errors[0].Code != "no-vtable-slot" || refused.Error.Code != "no-vtable-slot" || plan.Patches[0].State != "refused" {
		t.Errorf("%+v %+v", refused, plan)
	}

	ask(0, &plan, "apply", p1)
	if d := plan.Patches[0]; d.State != "applied" || d.PID != p.PID() || d.Program != "seed" || d.Patch != "seed" || d.Version != 1 || d.Pause <= 0 || d.Threads != 4 || d.Tries < 1 {
		t.Errorf("%+v", d)
	}
	runs(t, p, 1)
	ask(0, &plan, "apply", p1)
	if d := plan.Patches[0]; d.State != "already-applied" {
		t.Errorf("%+v", d)
	}
	var host struct {
		Processes []struct {
			PID     int
			Patches []struct {
				Name      string
				Version   uint64
				State     string
				Functions []struct {
					Function string
					InForce  bool `json:"in_force"`
				}
			}
			Differences []any
		}
	}
	for _, verb := range []string{"list", "verify"} {
		ask(0, &host, verb)
		if len(host.Processes) != 1 || host.Processes[0].PID != p.PID() || len(host.Processes[0].Patches) != 1 || len(host.Processes[0].Differences) != 0 {
			t.Fatalf("%s: %+v", verb, host)
		}
		if k := host.Processes[0].Patches[0]; k.Name != "seed" || k.Version != 1 || k.State != "active" || len(k.Functions) != 3 || !k.Functions[0].InForce {
			t.Errorf("%s: %+v", verb, k)
		}
	}
	var found struct {
		Matched int
		Symbols []struct {
			Query     string
			PatchedBy string `json:"patched_by"`
		}
	}
	ask(0, &found, "symbols", "--limit", "2", "--functions", "say_hello")
	if found.Matched != 3 || len(found.Symbols) != 2 || found.Symbols[0].PatchedBy != "seed@1" || !strings.HasPrefix(found.Symbols[0].Query, "seed!") {
		t.Errorf("%+v", found)
	}
	var reverted struct {
		State    string
		Sites    int
		Reverted []struct{ Name string }
	}
	ask(0, &reverted, "revert", "seed")
	if reverted.State != "reverted" || len(reverted.Reverted) != 1 || reverted.Reverted[0].Name != "seed" || reverted.Sites == 0 {
		t.Errorf("%+v", reverted)
	}
	if a := ask(4, nil, "revert", "seed"); a.Error.Code != "not-applied" || a.Errors != nil || a.Result != nil {
		t.Errorf("%+v", a)
	}
	ask(0, &reverted, "revert", "--all")
	if reverted.State != "nothing-applied" {
		t.Errorf("%+v", reverted)
	}
	runs(t, p, 0)
	p.Healthy(t)
}

// calc starts the calculator, which calls only what it is told to, and gives a
// patch for one of its functions.
func calc(t *testing.T, function string) (p *testtarget.Process, pid, patch string) {
	t.Helper()
	p = testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: []string{"calc.c", "calc_a.c", "calc_b.c", "calc_asm.S"}, Flags: []string{"-O2"}}))
	patch = testtarget.Build(t, testtarget.Spec{Sources: []string{"calc_patch.c"}, Shared: true,
		Flags: []string{"-O2", "-DNAME=" + function, "-DPLUS=1000", "-DVERSION=1", `-DPATCH="calc"`}})
	return p, strconv.Itoa(p.PID()), patch
}

// Somebody else writes over a place that hotpatch has rewritten.
func TestVerifyAltered(t *testing.T) {
	t.Parallel()
	p, pid, patch := calc(t, "add_one")
	var plan struct {
		Result struct {
			Patches []struct {
				Replaced []struct{ Sites []struct{ Address string } }
			}
		}
	}
	testtarget.RunJSON(t, &plan, "apply", "--pid", pid, patch)
	if p := plan.Result.Patches; len(p) != 1 || len(p[0].Replaced) != 1 || len(p[0].Replaced[0].Sites) == 0 {
		t.Fatalf("%+v", plan)
	}
	text := plan.Result.Patches[0].Replaced[0].Sites[0].Address
	addr, err := strconv.ParseInt(text, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.OpenFile("/proc/"+pid+"/mem", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	old := make([]byte, 1)
	if _, err := mem.ReadAt(old, addr); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.WriteAt([]byte{0xcc}, addr); err != nil {
		t.Fatal(err)
	}

	const program = `process \d+ \(calc\)`
	r := says(t, 6, []string{"verify", "--pid", pid}, `hotpatch: process \d+ is not as recorded \(calc\): memory differs in 1 place \[altered\]`, `hint: .*`)
	for _, want := range []string{program + `: NOT as recorded: 1 function of 1 patch compared with memory`, `FUNCTION +MODULE +KIND +ADDRESS +WANT +HAVE`, `add_one +calc +entry +` + text + ` +([0-9a-f]{2} )+ +cc .*`} {
		if !regexp.MustCompile("(?m)^" + want + "$").MatchString(r.Stdout) {
			t.Errorf("no line matches %s\n%v", want, r)
		}
	}
	says(t, 0, []string{"list", "--pid", pid}, pid+` +calc +calc +1 +altered .*`, `warning: process \d+: memory is not what the record says in 1 place; hotpatch verify --pid \d+ shows where`)
	var a answered
	testtarget.RunJSON(t, &a, "verify", "--pid", pid)
	if a.OK || a.Result == nil || a.Error == nil || a.Error.Code != "altered" || a.Error.Kind != "differs" {
		t.Errorf("%+v", a)
	}
	if got := testtarget.Run(t, "revert", "--pid", pid, "--all"); got.Exit != 6 || !strings.Contains(got.Stderr, "[memory-differs]") {
		t.Errorf("%v", got)
	}

	if _, err := mem.WriteAt(old, addr); err != nil {
		t.Fatal(err)
	}
	says(t, 0, []string{"verify", "--pid", pid}, program+`: as recorded: .*`)
	if got := p.Ask("call add_one 5", "="); got != "add_one(5) = 1005" {
		t.Error(got)
	}
	p.Healthy(t)
}

// A process of which nothing can be said but an error, and one that was left in
// the middle: verify does not let them pass.
func TestNotAsRecorded(t *testing.T) {
	t.Parallel()
	for code, s := range map[string]*engine.ProcessState{
		"":               {PID: 7, Patches: []engine.PatchState{{Name: "a"}}},
		"unfinished":     {PID: 7, Interrupted: true},
		"altered":        {PID: 7, Interrupted: true, Differences: []engine.Difference{{}}},
		"ledger-damaged": {PID: 7, Error: "its check sum is wrong", ErrorCode: "ledger-damaged"},
	} {
		e := notAsRecorded(s)
		if got := e != nil; got != (code != "") || got && (e.Code != code || e.Kind != 6) {
			t.Errorf("%q: %+v", code, e)
		}
	}
}

// The name of a program does not reach the terminal as it is.
func TestHostileProgramName(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile(testtarget.Build(t, testtarget.Spec{Sources: []string{"seed.cc"}, Flags: []string{"-O2"}}))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "se\x1b[31med\n0 forged")
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	p := testtarget.Start(t, path, testtarget.Args("-q"))
	pid := strconv.Itoa(p.PID())
	const name = `se\\x1b\[31med\\n0 forged`
	for _, r := range []testtarget.Result{
		says(t, 0, []string{"list", "--pid", pid}, `process \d+ \(`+name+`\) has no patches`),
		says(t, 0, []string{"symbols", "--pid", pid, "say_hello_fun"}, `.* `+name+`!say_hello_fun\(.*\)`),
		testtarget.Run(t, "apply", "--pid", pid, "--dry-run", "--method", "vtable", seedPatch(t, 1)),
	} {
		if strings.Contains(r.Stdout+r.Stderr, "\x1b") {
			t.Errorf("%q", r)
		}
	}
}

// A change that was made is a success, also if nobody gets to read of it.
func TestLostOutputOfApply(t *testing.T) {
	t.Parallel()
	p, pid := seed(t)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if status, stderr := runTo(t, full, "apply", "--pid", pid, seedPatch(t, 1)); status != 0 || !strings.Contains(stderr, "[output-lost]\nhint: what the command did to the process stands") {
		t.Errorf("status %d, %s", status, stderr)
	}
	runs(t, p, 1)
}
