package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hotpatch/internal/testtarget"
)

// refusing is how hotpatch must answer a bad input.
type refusing struct {
	exit int
	code string
	says []string // parts of the message and its hint
}

// check runs hotpatch, as text and as JSON, and ends the test unless both refuse
// in this way. In short tests only JSON is asked for.
func (want refusing) check(t *testing.T, args ...string) {
	t.Helper()
	var a reply
	r := testtarget.RunJSON(t, &a, args...)
	if r.Exit != want.exit || a.OK || len(a.all()) != 1 || a.Error.Code != want.code {
		t.Fatalf("it should exit with %d and give the one error %s\n%v", want.exit, want.code, r)
	}
	for _, part := range want.says {
		if !strings.Contains(a.Error.Message+"\n"+a.Error.Hint, part) {
			t.Errorf("the message should contain %q\n%v", part, r)
		}
	}
	if testing.Short() {
		return
	}
	r = refused(t, want.exit, want.code, args...)
	// There may be a plan, which says that it cannot be.
	if !strings.HasPrefix(r.Stderr, "hotpatch: ") || r.Stdout != "" && !strings.Contains(r.Stdout, " cannot be applied ") {
		t.Errorf("it should say nothing but that it cannot be done\n%v", r)
	}
	for _, part := range want.says {
		if !strings.Contains(r.Stderr, part) {
			t.Errorf("the message should contain %q\n%v", part, r)
		}
	}
}

// TestRefusePatchFile: files that are no patch library. All of them are seen
// before the target is touched.
func TestRefusePatchFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := calcPatch(t, "add_one", 1000, "good", 1)
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	with := func(offset int, b ...byte) []byte {
		content := bytes.Clone(whole)
		copy(content[offset:], b)
		return content
	}
	records := sectionOffset(t, good, ".hotpatch.records")
	fifo := filepath.Join(dir, "fifo.so")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	build := func(source string, flags ...string) string {
		return testtarget.Build(t, testtarget.Spec{Files: map[string]string{"p.c": source}, Flags: flags, Name: "p.so",
			Shared: !slices.Contains(flags, "-c") && !slices.Contains(flags, "-pie") && !slices.Contains(flags, "-no-pie")})
	}
	const function = "long add_one(long x); long add_one(long x) { return x + 1000; }\n"
	const header = "#include \"hotpatch.h\"\n" + function

	type fileCase struct {
		name, path string
		refusing
	}
	tests := []fileCase{
		{"missing", filepath.Join(dir, "none.so"), refusing{4, "patch-missing", []string{"none.so", "no such file"}}},
		{"empty", file("empty.so", nil), refusing{4, "patch-empty", []string{"0 bytes"}}},
		{"text", file("text.so", []byte("#!/bin/sh\nexit 0\n")), refusing{4, "patch-not-elf", []string{"magic"}}},
		{"directory", dir, refusing{4, "patch-not-regular", []string{"d---"}}},
		{"FIFO", fifo, refusing{4, "patch-not-regular", []string{"p---"}}},
		{"device", "/dev/zero", refusing{4, "patch-not-regular", nil}},
		{"other machine", file("arm.so", with(18, 183, 0)), refusing{4, "patch-wrong-machine", []string{"AARCH64"}}},
		{"executable", build("int main(void) { return 0; }\n"+function, "-no-pie", "-fno-pic"), refusing{4, "patch-not-shared-object", []string{"executable", "-shared"}}},
		{"PIE", build("int main(void) { return 0; }\n"+function, "-pie", "-fPIE", "-rdynamic"), refusing{4, "patch-not-shared-object", []string{"position-independent", "-shared"}}},
		{"object file", build(function, "-c"), refusing{4, "patch-not-shared-object", []string{"relocatable"}}},
		{"executable stack", build(function, "-z", "execstack"), refusing{4, "patch-exec-stack", []string{"stack", "noexecstack"}}},
		{"text relocations", build(function+"extern int far; __asm__(\".text\\n.quad far\\n\");", "-z", "notext"), refusing{4, "patch-text-relocations", []string{"-fPIC"}}},
		{"no function", build("int v;"), refusing{4, "patch-no-functions", []string{"exports no function"}}},
		{"record magic", file("magic.so", with(records, 0xff)), refusing{4, "patch-bad-record", []string{"begins with"}}},
		{"record size 0", file("size0.so", with(records+4, 0, 0, 0, 0)), refusing{4, "patch-bad-record", []string{"0 bytes"}}},
		{"record size huge", file("size.so", with(records+4, 0xf8, 0xff, 0xff, 0xff)), refusing{4, "patch-bad-record", []string{"4294967288"}}},
		{"record type", file("type.so", with(records+8, 99, 0, 0, 0)), refusing{4, "patch-bad-record", []string{"type 99"}}},
		{"record version 0", file("version.so", with(records+16, 0, 0, 0, 0, 0, 0, 0, 0)), refusing{4, "patch-bad-record", []string{"version is 0"}}},
		{"record name", file("name.so", with(records+32, 0x1b, '[', '2', 'J')), refusing{4, "patch-bad-record", []string{"printed"}}},
		{"bad build-id", build(header + "HOTPATCH_BASE(\"xyz\")\n"), refusing{4, "patch-bad-record", []string{"hexadecimal"}}},
	}
	for i, n := range []int{1, 4, 63, 64, 1000, len(whole) / 2, len(whole) - 1} {
		tests = append(tests, fileCase{fmt.Sprintf("first %d bytes", n), file(fmt.Sprintf("cut%d.so", i), whole[:n]),
			refusing{4, "patch-truncated", []string{fmt.Sprintf("has %d bytes", n)}}})
	}
	tests = some(tests, 0, 1, 4, 6, 9, 13, len(tests)-1)
	if !testing.Short() {
		testtarget.NeedFlags(t, "gcc", "-m32")
		tests = append(tests, fileCase{"32 bit", build(function, "-m32"), refusing{4, "patch-wrong-machine", []string{"32"}}})
	}

	p := calculator(t)
	pid := strconv.Itoa(p.PID())
	before := testtarget.TextSnapshot(t, p.PID())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.check(t, "apply", "--pid", pid, tt.path)
			tt.check(t, "inspect", tt.path)
			// Not even the good one before it is applied.
			tt.check(t, "apply", "--pid", pid, good, tt.path)
		})
	}
	identical(t, before, p.PID())
	p.Healthy(t)
	answers(t, p, "add_one", 1, 2)
	apply(t, p.PID(), good)
	answers(t, p, "add_one", 1, 1001)
}

// TestRefuseUnfit: patches that do not fit the process. They are refused from
// the plan, so that the target stays as it is to the last byte.
func TestRefuseUnfit(t *testing.T) {
	t.Parallel()
	exe := testtarget.Build(t, testtarget.Spec{Sources: calcSources, Flags: []string{"-O2"}})
	id := buildID(t, exe)
	const function = "#include \"hotpatch.h\"\nstatic long f(long x) { return x; }\n"
	at := func(name string, plus int) string {
		return fmt.Sprintf("HOTPATCH_REPLACE_AT(f, %q, %#x)\n", id, int(symbolAddr(t, exe, name))+plus)
	}
	tests := []struct {
		name, source string
		refusing
	}{
		{"nothing in common", "long nothing(long x); long nothing(long x) { return x; }\n",
			refusing{4, "nothing-in-common", []string{"none of the 1 function", "symbols"}}},
		{"unknown name", function + "HOTPATCH_REPLACE(f, \"no_such_function\")\n", refusing{4, "no-symbol", []string{"no_such_function"}}},
		{"ambiguous name", function + "HOTPATCH_REPLACE(f, \"same_name\")\n",
			refusing{4, "ambiguous-symbol", []string{"calc_a.c", "calc_b.c", "0x", "same_name"}}},
		{"ambiguous export", "long same_name(long x); long same_name(long x) { return x; }\n",
			refusing{4, "ambiguous-symbol", []string{"calc_a.c", "calc_b.c", "0x", "same_name"}}},
		{"a variable", function + "HOTPATCH_REPLACE(f, \"visible_counter\")\n", refusing{4, "not-a-function", []string{"visible_counter", "HOTPATCH_REF"}}},
		{"unknown reference", function + "HOTPATCH_REPLACE(f, \"add_one\")\nHOTPATCH_REF_VAR(long, v, \"no_such_variable\")\n",
			refusing{4, "no-symbol", []string{"no_such_variable"}}},
		{"reference of another kind", function + "HOTPATCH_REPLACE(f, \"add_one\")\nHOTPATCH_REF_VAR(long, v, \"times_two\")\n",
			refusing{4, "no-symbol", []string{"times_two"}}},
		{"other build", function + "HOTPATCH_REPLACE(f, \"add_one\")\nHOTPATCH_BASE(\"0123456789abcdef\")\n",
			refusing{4, "build-id", []string{"0123456789abcdef", id}}},
		{"other build of a module", function + "HOTPATCH_REPLACE(f, \"add_one\")\nHOTPATCH_BASE_MODULE(\"libc.so.6\", \"0123456789abcdef\")\n",
			refusing{4, "build-id", []string{"libc.so.6", "0123456789abcdef"}}},
		{"module that is not there", function + "HOTPATCH_REPLACE(f, \"add_one\")\nHOTPATCH_BASE_MODULE(\"libgone.so\", \"0123456789abcdef\")\n",
			refusing{4, "no-module", []string{"libgone.so"}}},
		{"address in another build", function + "HOTPATCH_REPLACE_AT(f, \"0123456789abcdef\", 0x1000)\n",
			refusing{4, "build-id", []string{"0123456789abcdef"}}},
		{"address inside a function", function + at("waits_inside", 4), refusing{4, "not-an-entry", []string{"4 bytes inside waits_inside"}}},
		{"address of data", function + at("visible_counter", 0), refusing{4, "not-code", nil}},
		{"address beyond the module", function + at("visible_counter", 1<<30), refusing{4, "not-code", nil}},
	}
	tests = some(tests, 0, 1, 2, 4, 7, 11)
	p := testtarget.Start(t, exe)
	pid := strconv.Itoa(p.PID())
	before := testtarget.TextSnapshot(t, p.PID())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			patch := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"unfit.c": tt.source}, Shared: true})
			tt.check(t, "apply", "--pid", pid, patch)
			tt.check(t, "apply", "--dry-run", "--pid", pid, patch)
			identical(t, before, p.PID())
			p.Healthy(t)
		})
	}
	t.Cleanup(func() { // after the parallel ones, and before the target is ended
		answers(t, p, "add_one", 1, 2)
		answers(t, p, "a_same", 1, 101)
	})
}

// TestRefuseAllAtOnce: a plan reports everything that is wrong with a patch, and
// not only the first.
func TestRefuseAllAtOnce(t *testing.T) {
	t.Parallel()
	patch := testtarget.Build(t, testtarget.Spec{Shared: true, Files: map[string]string{"wrong.c": `
#include "hotpatch.h"
HOTPATCH_NAME("wrong", 1)
HOTPATCH_BASE("0123456789abcdef")
static long f(long x) { return x; }
static long g(long x) { return x; }
static long h(long x) { return x; }
long add_one(long x);
long add_one(long x) { return x + 1000; }
HOTPATCH_REPLACE(f, "same_name")
HOTPATCH_REPLACE(g, "no_such_function")
HOTPATCH_REPLACE(h, "visible_counter")
HOTPATCH_REF_VAR(long, v, "no_such_variable")
`}})
	p := calculator(t)
	before := testtarget.TextSnapshot(t, p.PID())
	want := []string{"ambiguous-symbol", "build-id", "no-symbol", "no-symbol", "not-a-function"}
	for _, args := range [][]string{{"apply"}, {"apply", "--dry-run"}} {
		args = append(args, "--pid", strconv.Itoa(p.PID()), patch)
		var a reply
		r := testtarget.RunJSON(t, &a, args...)
		var codes []string
		for _, e := range a.all() {
			codes = append(codes, e.Code)
		}
		slices.Sort(codes)
		if r.Exit != 4 || a.OK || !slices.Equal(codes, want) {
			t.Errorf("it should exit with 4 and give the errors %q\n%v", want, r)
		}
		r = testtarget.Run(t, args...)
		for _, part := range append(want, "same_name", "no_such_function", "visible_counter", "no_such_variable", "0123456789abcdef") {
			if r.Exit != 4 || !strings.Contains(r.Stderr, part) {
				t.Errorf("it should exit with 4 and say %q\n%v", part, r)
			}
		}
		if n := strings.Count("\n"+r.Stderr, "\nhotpatch: "); n != len(want) {
			t.Errorf("it should print %d errors, each on a line of its own, and not %d\n%v", len(want), n, r)
		}
	}
	identical(t, before, p.PID())
	p.Healthy(t)
	answers(t, p, "add_one", 1, 2)
}

func openELF(t *testing.T, path string) *elf.File {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// sectionOffset gives where in a file a section begins.
func sectionOffset(t *testing.T, path, name string) int {
	t.Helper()
	s := openELF(t, path).Section(name)
	if s == nil {
		t.Fatalf("%s has no section %s", path, name)
	}
	return int(s.Offset)
}

// buildID gives a file's build-id in hexadecimal.
func buildID(t *testing.T, path string) string {
	t.Helper()
	s := openELF(t, path).Section(".note.gnu.build-id")
	if s == nil {
		t.Fatalf("%s has no build-id", path)
	}
	note, err := s.Data()
	if err != nil || len(note) < 17 {
		t.Fatalf("%s: %v, a note of %d bytes", path, err, len(note))
	}
	return hex.EncodeToString(note[16:]) // after three lengths and the name "GNU"
}

// symbolAddr gives the address in the file of the only symbol of a name.
func symbolAddr(t *testing.T, path, name string) uint64 {
	t.Helper()
	f := openELF(t, path)
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	var found []uint64
	for _, s := range symbols {
		if s.Name == name {
			found = append(found, s.Value)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s has %d symbols %s", path, len(found), name)
	}
	return found[0]
}
