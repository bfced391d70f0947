package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hotpatch/internal/testtarget"
)

// answered is the object that --json prints.
type answered struct {
	Schema  int             `json:"schema"`
	OK      bool            `json:"ok"`
	Command string          `json:"command"`
	Result  json.RawMessage `json:"result"`
	Error   *problem        `json:"error"`
	Errors  []problem       `json:"errors"`
}

// noPID is more than the greatest number that Linux gives a process
// (PID_MAX_LIMIT, proc_sys_kernel(5)).
const noPID = "4194305"

func TestUsage(t *testing.T) {
	t.Parallel()
	self := strconv.Itoa(os.Getpid())
	for _, test := range []struct{ args, says string }{
		{"", "no command given [usage]\nhint: hotpatch --help"},
		{"aply --pid 1", `unknown command "aply" [usage]` + "\nhint: did you mean apply?"},
		{"frobnicate", `unknown command "frobnicate" [usage]` + "\nhint: hotpatch --help"},
		{"--frobnicate", "unknown flag: --frobnicate"},
		{"list --frobnicate", "unknown flag: --frobnicate [usage]\nhint: hotpatch list --help"},
		{"list 17", `unexpected argument "17"`},
		{"list --pid 0", "a process id is a positive number"},
		{"list --pid -1", "a process id is a positive number"},
		{"list --pid 99999999999", "a process id is a positive number"},
		{"list --pid seed", "a process id is a positive number"},
		{"list --pid", "flag needs an argument: --pid"},
		{"apply fix.so", "no process given [usage]\nhint: say which one with --pid PID"},
		{"apply --pid " + self, "no patch library given"},
		{"apply --pid " + self + " --method both fix.so", `--method is auto, entry or vtable, and not "both"`},
		{"apply --pid " + self + " --timeout 0s fix.so", "a timeout is a positive duration"},
		{"apply --pid " + self + " --timeout -1s fix.so", "a timeout is a positive duration"},
		{"apply --pid " + self + " --timeout 10 fix.so", "a timeout is a positive duration"},
		{"apply --pid " + self + " --name= fix.so", "--name is empty"},
		{"apply --pid " + self + " --patch-version 0 fix.so", "a version is a number from 1 up"},
		{"apply --pid " + self + " --patch-version 2 a.so b.so", "are for one patch, and 2 are given"},
		{"apply --pid " + self + " --signature s fix.so", "--signature is for --require-signature"},
		{"apply --pid " + self + " --require-signature= fix.so", "--require-signature is empty"},
		{"build", "no source given"},
		{"build --source d --deb-source p.dsc --patch p --base x -o f.so", "--source and --deb-source exclude each other"},
		{"build --deb-source p.dsc --base x -o f.so", "no change given"},
		{"build --deb-source p.dsc --patch p --base x -o f.so make", "the build command comes after --"},
		{"build --source d --watched-only --patch p --base x -o f.so", "--watched-only needs --deb-source"},
		{"build --pre a.o --base x -o f.so", "1 times --pre and 0 times --post"},
		{"build --pre a.o --post b.o -o f.so", "no base given"},
		{"build --pre a.o --post b.o --base x", "no output given"},
		{"build fix.patch", `unexpected argument "fix.patch"`},
		{"revert --all", "no process given"},
		{"revert --pid " + self, "name some, or say --all"},
		{"revert --pid " + self + " --all fix", `--all and the patch "fix" are given`},
		{"revert --pid " + self + " --timeout 0s --all", "a timeout is a positive duration"},
		{"revert --pid " + self + " --all --unload --max-pause 0s", "a positive duration"},
		{"verify 17", `unexpected argument "17"`},
		{"symbols parse", "no process given"},
		{"symbols --pid " + self, "no pattern given"},
		{"symbols --pid " + self + " a b", `unexpected argument "b"`},
		{"symbols --pid " + self + " --limit -1 a", "a limit is a number"},
		{"inspect", "no patch library given"},
		{"inspect a.so b.so", `unexpected argument "b.so"`},
		{"version now", `unexpected argument "now"`},
		{"completion", "no shell given"},
		{"completion tcsh", `no completion for the shell "tcsh"`},
		{"help frobnicate", `there is no command "frobnicate"`},
		{"man", "no directory given"},
	} {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			args := strings.Fields(test.args)
			r := testtarget.Run(t, args...)
			if r.Exit != 2 || r.Stdout != "" || !strings.HasPrefix(r.Stderr, "hotpatch: ") || !strings.Contains(r.Stderr, test.says) || !strings.Contains(r.Stderr, "\nhint: ") {
				t.Errorf("want %q, exit 2\n%v", test.says, r)
			}
			if strings.HasSuffix(test.args, "--pid") {
				return // it would take --json for the number
			}
			var a answered
			r = testtarget.RunJSON(t, &a, args...)
			if a.Schema != 1 || a.OK || a.Result != nil || a.Error == nil || a.Error.Kind != "usage" || a.Error.Code != "usage" || a.Error.Hint == "" || r.Exit != 2 || r.Stderr == "" {
				t.Errorf("%v", r)
			}
		})
	}
}

// Whatever is said with --json about a process that is not there has one form.
func TestNoSuchProcess(t *testing.T) {
	t.Parallel()
	patch := testtarget.Build(t, testtarget.Spec{Sources: []string{"seed_p1.cc"}, Shared: true})
	for _, args := range [][]string{
		{"apply", "--pid", noPID, patch}, {"apply", "--dry-run", "--pid", noPID, patch}, {"list", "--pid", noPID},
		{"revert", "--pid", noPID, "--all"}, {"verify", "--pid", noPID}, {"symbols", "--pid", noPID, "main"},
	} {
		r := testtarget.Run(t, args...)
		if want := "hotpatch: cannot work on process " + noPID + ": there is no such process [no-such-process]\n"; r.Exit != 5 || r.Stdout != "" || r.Stderr != want {
			t.Errorf("%v", r)
		}
		var a answered
		r = testtarget.RunJSON(t, &a, args...)
		want := answered{Schema: 1, Command: args[0], Error: &problem{Kind: "no-access", Code: "no-such-process",
			Message: "cannot work on process " + noPID + ": there is no such process", What: "cannot work on process " + noPID, Why: "there is no such process"}}
		if diff := cmp.Diff(want, a); diff != "" || r.Exit != 5 || r.Stderr != "" {
			t.Errorf("%s\n%v", diff, r)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	r := testtarget.Run(t, "version")
	first, _, _ := strings.Cut(r.Stdout, "\n")
	if r.Exit != 0 || r.Stderr != "" || !strings.HasPrefix(first, "hotpatch version ") || strings.Count(first, " ") != 2 {
		t.Errorf("%v", r)
	}
	if flag := testtarget.Run(t, "--version"); flag.Stdout != first+"\n" || flag.Exit != 0 {
		t.Errorf("%v", flag)
	}
	var a answered
	if r := testtarget.RunJSON(t, &a, "version"); !a.OK || r.Exit != 0 {
		t.Errorf("%v", r)
	}
	var b buildInfo
	if err := json.Unmarshal(a.Result, &b); err != nil || b.short() != strings.Fields(first)[2] || !strings.HasPrefix(b.Go, "go1.") {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestBuildInfoShort(t *testing.T) {
	t.Parallel()
	for want, b := range map[string]buildInfo{
		"v1.2.3":                   {Version: "v1.2.3", Revision: "0123456789abcdef"},
		"devel":                    {Version: "devel"},
		"devel-0123456789ab":       {Version: "devel", Revision: "0123456789abcdef"},
		"devel-0123456789ab+dirty": {Version: "devel", Revision: "0123456789abcdef", Modified: true},
		"devel-01":                 {Version: "devel", Revision: "01"},
	} {
		if got := b.short(); got != want {
			t.Errorf("%+v is %q, want %q", b, got, want)
		}
	}
}

const inspected = `#include "hotpatch.h"
HOTPATCH_NAME("fix-login", 7)
HOTPATCH_DESCRIPTION("check the length first")
HOTPATCH_CVE("CVE-2026-0001")
HOTPATCH_CVE("CVE-2026-0002")
HOTPATCH_BASE("aabbccdd")
HOTPATCH_BASE_MODULE("libm.so.6", "00112233")
HOTPATCH_REF_VAR(int, failures, "login.c:failures")
static int new_login(int x) { return x + *failures; }
HOTPATCH_REPLACE(new_login, "login.c:login")
static int new_at(int x) { return x; }
HOTPATCH_REPLACE_AT(new_at, "aabbccdd", 0x1234)
static int check(void) { return 0; }
HOTPATCH_BEFORE_APPLY(check)
int exported(int x) { return x + 1; }
__attribute__((weak)) int inlined(int x) { return x + 2; }
int helper(int x) { return x + 3; }
HOTPATCH_KEEP(helper)
`

func TestInspect(t *testing.T) {
	t.Parallel()
	patch := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"fix.c": inspected}, Flags: []string{"-O1"}, Shared: true})
	r := testtarget.Run(t, "inspect", patch)
	for _, want := range []string{
		"fix-login version 7 (" + patch + ")\n", "description  check the length first\n", "CVEs         CVE-2026-0001 CVE-2026-0002\n", "\nsha256 ",
		"made for     aabbccdd (every module that it changes)\n", "made for     00112233 (libm.so.6)\n", "refers to    login.c:failures (variable)\n",
		"hook         check (before-apply)\n", "keeps        helper\n", "\nREPLACES ", "\nlogin.c:login ", "\n0x1234 in build aabbccdd ", "\nexported ", "\ninlined ", "(only with --weak)",
	} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if r.Exit != 0 || r.Stderr != "" || t.Failed() {
		t.Errorf("%v", r)
	}

	var a answered
	if r := testtarget.RunJSON(t, &a, "inspect", patch); !a.OK || r.Exit != 0 || r.Stderr != "" {
		t.Fatalf("%v", r)
	}
	var got map[string]any
	if err := json.Unmarshal(a.Result, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"size", "sha256", "build_id"} {
		delete(got, key) // the compiler's business
	}
	dropPlaces(got)
	want := map[string]any{
		"file": patch, "name": "fix-login", "version": 7.0, "description": "check the length first", "cves": []any{"CVE-2026-0001", "CVE-2026-0002"}, "has_records": true,
		"replacements": []any{
			map[string]any{"old": "login.c:login", "new": map[string]any{"name": "new_login", "mangled": "new_login"}},
			map[string]any{"old_build_id": "aabbccdd", "old_address": "0x1234", "new": map[string]any{"name": "new_at", "mangled": "new_at"}},
		},
		"exports":    []any{map[string]any{"name": "exported", "mangled": "exported"}},
		"weak":       []any{map[string]any{"name": "inlined", "mangled": "inlined"}},
		"kept":       []any{map[string]any{"name": "helper", "mangled": "helper"}},
		"bases":      []any{map[string]any{"build_id": "aabbccdd"}, map[string]any{"module": "libm.so.6", "build_id": "00112233"}},
		"references": []any{map[string]any{"symbol": "login.c:failures", "kind": "variable"}},
		"hooks":      []any{map[string]any{"when": "before-apply", "function": map[string]any{"name": "check", "mangled": "check"}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// dropPlaces removes the addresses and sizes that the compiler chose.
func dropPlaces(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range []string{"address", "size", "slot"} {
			delete(v, key)
		}
		for _, e := range v {
			dropPlaces(e)
		}
	case []any:
		for _, e := range v {
			dropPlaces(e)
		}
	}
}

func TestInspectRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "bad\x1b[31m\nname.so")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := testtarget.Run(t, "inspect", path)
	if r.Exit != 4 || r.Stdout != "" || !strings.Contains(r.Stderr, "[patch-not-elf]") || strings.Contains(r.Stderr, "\x1b") || strings.Count(r.Stderr, "\n") != 1 {
		t.Errorf("%v", r)
	}
	var a answered
	if r := testtarget.RunJSON(t, &a, "inspect", filepath.Join(dir, "none.so")); r.Exit != 4 || r.Stderr != "" || a.Error == nil || a.Error.Code != "patch-missing" || a.Error.Kind != "unfit" || a.OK {
		t.Errorf("%v", r)
	}
	// All files that cannot be used are reported, before the process is looked at.
	r = testtarget.Run(t, "apply", "--pid", noPID, path, filepath.Join(dir, "none.so"))
	if r.Exit != 4 || !strings.Contains(r.Stderr, "[patch-not-elf]") || !strings.Contains(r.Stderr, "[patch-missing]") {
		t.Errorf("%v", r)
	}
}

// Output that nobody takes: a full disk is an error, a reader that went away is
// not.
func TestLostOutput(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if status, stderr := runTo(t, full, "version"); status != 1 || !strings.Contains(stderr, "[output-lost]") {
		t.Errorf("full: status %d, %s", status, stderr)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if status, stderr := runTo(t, w, "version"); status != 0 || stderr != "" {
		t.Errorf("pipe: status %d, %s", status, stderr)
	}
}

// runTo runs hotpatch with its standard output going to a file.
func runTo(t *testing.T, stdout *os.File, args ...string) (status int, stderr string) {
	t.Helper()
	var b strings.Builder
	cmd := exec.Command(testtarget.Hotpatch(t), args...)
	cmd.Stdout, cmd.Stderr = stdout, &b
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), b.String() // -1: a signal
}
