package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

var (
	calcSources    = []string{"calc.c", "calc_a.c", "calc_b.c", "calc_asm.S"}
	tortureSources = []string{"torture.c", "torture_checks.c", "torture_syscalls.c", "torture_spin.S"}
)

// must runs hotpatch and ends the test unless it exits with 0.
func must(t testing.TB, args ...string) testtarget.Result {
	t.Helper()
	if args[0] == "apply" || args[0] == "revert" {
		args = patiently(args)
	}
	r := testtarget.Run(t, args...)
	if r.Exit != 0 {
		t.Fatalf("it should exit with 0\n%v", r)
	}
	return r
}

// patiently gives hotpatch a minute for what must succeed, unless the test says how
// long: the machine may be starved by other tests.
func patiently(args []string) []string {
	if slices.Contains(args, "--timeout") || slices.Contains(args, "--dry-run") {
		return args
	}
	return append(slices.Clone(args), "--timeout", "1m")
}

// refused runs hotpatch and ends the test unless it exits with the given status
// and the message carries the error code.
func refused(t testing.TB, exit int, code string, args ...string) testtarget.Result {
	t.Helper()
	r := testtarget.Run(t, args...)
	if r.Exit != exit || !strings.Contains(r.Stderr, "["+code+"]") {
		t.Fatalf("it should exit with %d and say [%s]\n%v", exit, code, r)
	}
	return r
}

// apply applies patches to a process; it must succeed.
func apply(t testing.TB, pid int, patches ...string) testtarget.Result {
	t.Helper()
	return must(t, append([]string{"apply", "--pid", strconv.Itoa(pid)}, patches...)...)
}

// revert takes patches out of a process (all of them if no name is given); it
// must succeed.
func revert(t testing.TB, pid int, names ...string) testtarget.Result {
	t.Helper()
	if len(names) == 0 {
		names = []string{"--all"}
	}
	return must(t, append([]string{"revert", "--pid", strconv.Itoa(pid)}, names...)...)
}

// verify runs verify, which must find nothing.
func verify(t testing.TB, pid int) testtarget.Result {
	t.Helper()
	return must(t, "verify", "--pid", strconv.Itoa(pid))
}

// unchanged ends the test unless every mapping of before is still there with
// the same content. Mappings may have been added: hotpatch's own.
func unchanged(t testing.TB, before testtarget.Snapshot, pid int) {
	t.Helper()
	for _, line := range testtarget.Diff(before, testtarget.TextSnapshot(t, pid)) {
		if !strings.HasPrefix(line, "added ") {
			t.Errorf("process %d: %s", pid, line)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// identical ends the test unless the process has the same read-only mappings
// with the same content as before.
func identical(t testing.TB, before testtarget.Snapshot, pid int) {
	t.Helper()
	if diff := testtarget.Diff(before, testtarget.TextSnapshot(t, pid)); len(diff) > 0 {
		t.Fatalf("process %d has changed:\n%s", pid, strings.Join(diff, "\n"))
	}
}

// answers ends the test unless the calculator's function gives this result.
func answers(t testing.TB, p *testtarget.Process, function string, x, want int) {
	t.Helper()
	line := fmt.Sprintf("%s(%d) = %d", function, x, want)
	if got := p.Ask(fmt.Sprintf("call %s %d", function, x), regexp.QuoteMeta(function)+`\(.* = `); got != line {
		t.Fatalf("the target says %q, want %q", got, line)
	}
}

// calcPatch builds a patch of one function of the calculator, or of any that
// takes a long and gives one: it gives its argument plus `plus`. Version 0 makes
// a plain shared object without records, whose name is that of the file.
func calcPatch(t testing.TB, function string, plus int, name string, version int, flags ...string) string {
	t.Helper()
	flags = append([]string{"-O2", "-DNAME=" + function, fmt.Sprintf("-DPLUS=%d", plus)}, flags...)
	if version > 0 {
		flags = append(flags, fmt.Sprintf("-DVERSION=%d", version), fmt.Sprintf("-DPATCH=%q", name))
	}
	return testtarget.Build(t, testtarget.Spec{Sources: []string{"calc_patch.c"}, Shared: true, Flags: flags})
}

// mapsOf gives the lines of /proc/PID/maps that contain a text.
func mapsOf(t testing.TB, pid int, text string) []string {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(content)) {
		if strings.Contains(line, text) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// poke writes into a process's memory, as somebody else would.
func poke(t testing.TB, pid int, addr uint64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, int64(addr)); err != nil {
		t.Fatal(err)
	}
}

// peek reads n bytes of a process's memory.
func peek(t testing.TB, pid int, addr uint64, n int) []byte {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, int64(addr)); err != nil {
		t.Fatal(err)
	}
	return b
}

// several gives the first entries of a table, unless HOTPATCH_TEST_ALL=1 asks for all.
func several[T any](table []T, n int) []T {
	if os.Getenv("HOTPATCH_TEST_ALL") == "1" {
		return table
	}
	return table[:n]
}

// lengthy leaves a test out of the short ones, which are to be over in a minute.
func lengthy(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("not among the short tests (-short)")
	}
}

// some gives a part of a table in short tests: the entries at the given indexes.
func some[T any](table []T, indexes ...int) []T {
	if !testing.Short() {
		return table
	}
	var part []T
	for _, i := range indexes {
		part = append(part, table[i])
	}
	return part
}
