package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// calcTarget builds the calculator.
func calcTarget(t testing.TB, compiler string, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Sources: calcSources, Compiler: compiler, Flags: flags})
}

// cPatch builds a patch from C source, with hotpatch.h included.
func cPatch(t testing.TB, source string, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Name: "patch.so", Shared: true, Flags: append([]string{"-O2"}, flags...),
		Files: map[string]string{"patch.c": "#include \"hotpatch.h\"\n" + source}})
}

// replacing is the source of a patch with one function that gives its argument
// and `plus` and replaces what `old` names.
func replacing(old string, plus int) string {
	return fmt.Sprintf("HOTPATCH_NAME(\"replacing\", 1)\nstatic long fresh(long x) { return x + %d; }\nHOTPATCH_REPLACE(fresh, %q)\n", plus, old)
}

// TestStaticFunctions: functions that only the symbol table knows, named in the
// ways that hotpatch.h offers.
func TestStaticFunctions(t *testing.T) {
	t.Parallel()
	for _, compiler := range some([]string{"gcc", "clang"}, 0) {
		t.Run(compiler, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, calcTarget(t, compiler, "-O1"))
			pid := p.PID()
			before := testtarget.TextSnapshot(t, pid)
			tests := []struct {
				old, function string // as the patch names it; as the calculator does
				was           int    // for 5
			}{
				{"times_two", "times_two", 10},
				{"calc!times_two", "times_two", 10},
				{"calc.c:times_two", "times_two", 10},
				{"calc!calc.c:times_two", "times_two", 10},
				{"calc_a.c:same_name", "a_same", 105},
				{"calc_b.c:same_name", "b_same", 205},
				{"calc!calc_b.c:same_name", "b_same", 205},
			}
			for _, test := range tests {
				answers(t, p, test.function, 5, test.was)
				applyOne(t, pid, cPatch(t, replacing(test.old, 1000)))
				answers(t, p, test.function, 5, 1005)
				for _, other := range tests {
					if other.function != test.function {
						answers(t, p, other.function, 5, other.was)
					}
				}
				revert(t, pid)
				answers(t, p, test.function, 5, test.was)
			}
			// A function that the patch exports replaces a static one, if it is the
			// only one of its name.
			applyOne(t, pid, calcPatch(t, "times_two", 2000, "exported", 1))
			answers(t, p, "times_two", 5, 2005)
			revert(t, pid)
			unchanged(t, before, pid)
		})
	}
}

// candidate is one of the symbols that an ambiguous name could mean.
type candidate struct{ Module, File, Address, Name, Mangled string }

// candidates reads them from the details of a refusal.
func candidates(t testing.TB, e refusal) []candidate {
	t.Helper()
	var list []candidate
	if err := json.Unmarshal(e.Details, &list); err != nil {
		t.Fatalf("details %s: %v", e.Details, err)
	}
	return list
}

// TestAmbiguous: same-named static functions are never guessed.
func TestAmbiguous(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, calcTarget(t, "gcc", "-O1"))
	pid := p.PID()
	before := testtarget.TextSnapshot(t, pid)
	for name, patch := range map[string]string{
		"exported":   calcPatch(t, "same_name", 1000, "ambiguous", 1),
		"named":      cPatch(t, replacing("same_name", 1000)),
		"named, exe": cPatch(t, replacing("calc!same_name", 1000)),
		"referred":   cPatch(t, "HOTPATCH_REF_FUNC(long, old, (long), \"same_name\")\nlong add_one(long x) { return old(x); }\n"),
	} {
		e := applyRefused(t, pid, 4, "ambiguous-symbol", patch)
		text := testtarget.Run(t, "apply", "--pid", strconv.Itoa(pid), patch).Stderr
		list := candidates(t, e)
		files := make(map[string]bool)
		for _, c := range list {
			files[c.File] = true
			if c.Module != "calc" || c.Name != "same_name" || c.Mangled != "same_name" || !regexp.MustCompile(`^0x[0-9a-f]+$`).MatchString(c.Address) {
				t.Errorf("%s: a candidate is %+v", name, c)
			}
			for _, want := range []string{c.Module, c.File, c.Address} {
				if !strings.Contains(text, want) {
					t.Errorf("%s: the message does not name %q:\n%s", name, want, text)
				}
			}
		}
		if len(list) != 2 || !files["calc_a.c"] || !files["calc_b.c"] {
			t.Errorf("%s: the candidates are %+v", name, list)
		}
		if list[0].Address == list[1].Address {
			t.Errorf("%s: both are at %s", name, list[0].Address)
		}
	}
	identical(t, before, pid)
	answers(t, p, "a_same", 5, 105)
	answers(t, p, "b_same", 5, 205)
}

// TestWeak: a function that the patch exports weakly, as a compiler does for inline
// functions and templates, is used only if that is asked for.
func TestWeak(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, calcTarget(t, "gcc", "-O2"))
	pid := p.PID()
	before := testtarget.TextSnapshot(t, pid)
	weak := cPatch(t, "__attribute__((weak)) long add_one(long x) { return x + 1000; }\n")
	e := applyRefused(t, pid, 4, "nothing-in-common", weak)
	if !strings.Contains(e.Hint, "--weak") {
		t.Errorf("the hint is %q", e.Hint)
	}
	// One that is not weak goes without saying; the weak one beside it does not.
	both := cPatch(t, "HOTPATCH_NAME(\"both\", 2)\nlong a_same(long x) { return x + 1000; }\n__attribute__((weak)) long add_one(long x) { return x + 1000; }\n")
	identical(t, before, pid)
	applyOne(t, pid, both)
	answers(t, p, "a_same", 5, 1005)
	answers(t, p, "add_one", 5, 6)
	revert(t, pid)
	applyOne(t, pid, "--weak", weak)
	answers(t, p, "add_one", 5, 1005)
	revert(t, pid)
	answers(t, p, "add_one", 5, 6)
	// Weak in the target is no reason against it.
	applyOne(t, pid, calcPatch(t, "weak_fn", 1000, "weakly", 1))
	answers(t, p, "weak_fn", 5, 1005)
	revert(t, pid)
	answers(t, p, "weak_fn", 5, 12)
	unchanged(t, before, pid)
}

// TestLibraries: functions of libraries that were opened with dlopen, the same one
// in two of them, and a patch for a library and the program at once.
func TestResolveLibraries(t *testing.T) {
	t.Parallel()
	library := func(name string) string {
		return testtarget.Build(t, testtarget.Spec{Sources: []string{"copies_lib.cc"}, Shared: true, Name: name, Flags: []string{"-O2"}})
	}
	exe := testtarget.Build(t, testtarget.Spec{Sources: []string{"copies.cc"}, Flags: []string{"-O0"}})
	p := testtarget.Start(t, exe, testtarget.Args(library("liba.so"), library("libb.so")))
	pid := p.PID()
	p.Ask("library 1", "^library 51 51$")
	before := testtarget.TextSnapshot(t, pid)
	patch := calcPatch(t, "library_function", 1000, "library", 1)

	list := candidates(t, applyRefused(t, pid, 4, "ambiguous-symbol", patch))
	if len(list) != 2 || list[0].Module == list[1].Module {
		t.Errorf("the candidates are %+v", list)
	}
	applyRefused(t, pid, 4, "no-module", "--module", "libz.so", patch)
	applyRefused(t, pid, 4, "nothing-in-common", "--module", "copies", patch)
	applyRefused(t, pid, 4, "no-symbol", cPatch(t, replacing("libz.so!library_function", 1000)))
	identical(t, before, pid)

	applyOne(t, pid, "--module", "liba.so", patch)
	p.Ask("library 1", "^library 1001 51$")
	revert(t, pid)
	applyOne(t, pid, cPatch(t, replacing("libb.so!library_function", 2000)))
	p.Ask("library 1", "^library 51 2001$")
	revert(t, pid)

	// The program's copy of a template and a library's function.
	applyOne(t, pid, cPatch(t, `HOTPATCH_NAME("several", 1)
static long fresh(long x) { return x + 3000; }
HOTPATCH_REPLACE(fresh, "liba.so!library_function")
HOTPATCH_REPLACE(fresh, "copies!thrice<long>")
`))
	p.Ask("library 1", "^library 3001 51$")
	p.Ask("thrice 2", "^thrice 3002 6 6$")
	verify(t, pid)
	revert(t, pid)
	p.Ask("library 1", "^library 51 51$")
	p.Ask("thrice 2", "^thrice 6 6 6$")
	unchanged(t, before, pid)
}

// TestReferences: a patch uses static functions and variables of the target; their
// state goes on.
func TestReferences(t *testing.T) {
	t.Parallel()
	for _, compiler := range some([]string{"gcc", "clang"}, 1) {
		t.Run(compiler, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, calcTarget(t, compiler, "-O1"))
			pid := p.PID()
			patch := testtarget.Build(t, testtarget.Spec{Sources: []string{"calc_p1.c"}, Shared: true, Flags: []string{"-O2"}})
			p.Ask("show", "^hidden 1000 visible 2000 tls 3000$")
			answers(t, p, "count", 0, 1001+2001+3001)
			answers(t, p, "parameters", 5, 990)
			p.Ask("show", "^hidden 1001 visible 2001 tls 3001$")
			applyOne(t, pid, patch)
			answers(t, p, "add_one", 5, 5+1+10) // it calls the static times_two
			answers(t, p, "count", 0, 1011)
			answers(t, p, "count", 0, 1021)
			answers(t, p, "a_same", 5, 5105)
			answers(t, p, "b_same", 5, 205)
			p.Ask("show", "^hidden 1021 visible 2001 tls 3001$")
			// sum (11-i)(x+i-1) for i 1..10, and the same of 1..10 in doubles
			answers(t, p, "parameters", 5, 55*5+165+220)
			revert(t, pid)
			answers(t, p, "count", 0, 1022+2002+3002)
			answers(t, p, "add_one", 5, 6)
			answers(t, p, "a_same", 5, 105)
			answers(t, p, "parameters", 5, 990)
		})
	}
}

// TestUnknownNames: names that mean nothing, or no function.
func TestUnknownNames(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, calcTarget(t, "gcc", "-O2"))
	pid := p.PID()
	before := testtarget.TextSnapshot(t, pid)
	for _, test := range []struct{ source, code, message string }{
		{replacing("no_such_function", 1), "no-symbol", "no_such_function"},
		{replacing("add_onf", 1), "no-symbol", "add_one"}, // a similar name
		{replacing("calc_b.c:add_one", 1), "no-symbol", "calc_b.c"},
		{replacing("libnone.so!add_one", 1), "no-symbol", "libnone.so"},
		{replacing("visible_counter", 1), "not-a-function", "visible_counter"},
		{replacing("calc.c:hidden_counter", 1), "not-a-function", "hidden_counter"},
		{"long no_such_function(long x) { return x; }\n", "nothing-in-common", "none of the 1 functions"},
		{"HOTPATCH_REF_VAR(long, v, \"no_such_variable\")\nlong add_one(long x) { return *v; }\n", "no-symbol", "no_such_variable"},
		{"HOTPATCH_REF_VAR(long, v, \"times_two\")\nlong add_one(long x) { return *v; }\n", "no-symbol", "not of the kind"},
		{"HOTPATCH_REF_FUNC(long, f, (long), \"visible_counter\")\nlong add_one(long x) { return f(x); }\n", "no-symbol", "not of the kind"},
	} {
		e := applyRefused(t, pid, 4, test.code, cPatch(t, test.source))
		if !strings.Contains(e.Message+" "+e.Hint, test.message) {
			t.Errorf("%s: the message is %q, the hint %q; want %q in it", test.code, e.Message, e.Hint, test.message)
		}
	}
	identical(t, before, pid)
	// Several at once are all reported, and nothing is done.
	r, _ := tryApply(t, pid, cPatch(t, `static long fresh(long x) { return x; }
HOTPATCH_REPLACE(fresh, "no_such_function")
HOTPATCH_REPLACE(fresh, "visible_counter")
HOTPATCH_REPLACE(fresh, "same_name")
long add_one(long x) { return x + 1000; }
`))
	var codes []string
	for _, e := range r.all() {
		codes = append(codes, e.Code)
	}
	if want := "no-symbol not-a-function ambiguous-symbol"; strings.Join(codes, " ") != want || r.run.Exit != 4 {
		t.Errorf("the refusals are %v\n%v", codes, r.run)
	}
	identical(t, before, pid)
	answers(t, p, "add_one", 5, 6)
}

// TestBases: the build that a patch was made for is compared with the one that
// runs, not with the file that has its name.
func TestBases(t *testing.T) {
	t.Parallel()
	runs := calcTarget(t, "gcc", "-O2", "-Wl,--build-id=sha1")
	newer := calcTarget(t, "gcc", "-O1", "-Wl,--build-id=sha1")
	exe := testtarget.Copy(t, runs)
	p := testtarget.Start(t, exe)
	pid := p.PID()
	// An update of the file while the process runs.
	content, err := os.ReadFile(newer)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe+".new", content, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(exe+".new", exe); err != nil {
		t.Fatal(err)
	}
	before := testtarget.TextSnapshot(t, pid)
	made := func(records string) string {
		return cPatch(t, records+"long add_one(long x) { return x + 1000; }\n")
	}
	right, wrong := buildID(t, runs), buildID(t, newer)
	if right == wrong {
		t.Fatal("both builds have the same build-id")
	}
	for _, records := range []string{
		fmt.Sprintf("HOTPATCH_BASE(%q)\n", wrong),
		fmt.Sprintf("HOTPATCH_BASE_MODULE(\"calc\", %q)\n", wrong),
	} {
		e := applyRefused(t, pid, 4, "build-id", made(records))
		if !strings.Contains(e.Why, right) || !strings.Contains(e.Why, wrong) {
			t.Errorf("the message does not name both builds: %s", e.Why)
		}
	}
	applyRefused(t, pid, 4, "no-module", made(fmt.Sprintf("HOTPATCH_BASE_MODULE(\"other\", %q)\n", right)))
	identical(t, before, pid)
	answers(t, p, "add_one", 5, 6)
	for _, records := range []string{
		fmt.Sprintf("HOTPATCH_BASE(%q)\n", right),
		fmt.Sprintf("HOTPATCH_BASE(%q)\nHOTPATCH_BASE(%q)\n", wrong, right),
		fmt.Sprintf("HOTPATCH_BASE_MODULE(\"calc\", %q)\n", right),
	} {
		applyOne(t, pid, made(records))
		answers(t, p, "add_one", 5, 1005)
		revert(t, pid)
		answers(t, p, "add_one", 5, 6)
	}
	unchanged(t, before, pid)
}

// TestSeveralPatches: each patch of one command is applied wholly or not at all, and
// the first that cannot be ends it.
func TestSeveralPatches(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, calcTarget(t, "gcc", "-O2"))
	pid := p.PID()
	one := calcPatch(t, "add_one", 1000, "one", 1)
	two := calcPatch(t, "a_same", 2000, "two", 1)
	bad := calcPatch(t, "same_name", 3000, "bad", 1)
	three := calcPatch(t, "b_same", 4000, "three", 1)
	r, results := tryApply(t, pid, one, two)
	if r.run.Exit != 0 || len(results) != 2 || results[0].Patch != "one" || results[1].Patch != "two" {
		t.Fatalf("both should be applied\n%v", r.run)
	}
	answers(t, p, "add_one", 5, 1005)
	answers(t, p, "a_same", 5, 2005)
	revert(t, pid)
	answers(t, p, "add_one", 5, 6)
	answers(t, p, "a_same", 5, 105)

	r, results = tryApply(t, pid, one, bad, three)
	if r.run.Exit != 4 || r.Error == nil || r.Error.Code != "ambiguous-symbol" || len(results) != 2 ||
		results[0].State != "applied" || results[1].State != "refused" {
		t.Fatalf("the second should be refused\n%v", r.run)
	}
	answers(t, p, "add_one", 5, 1005)
	answers(t, p, "b_same", 5, 205)
	revert(t, pid)
	answers(t, p, "add_one", 5, 6)
}

// TestDryRun: the plan is printed, and nothing is touched.
func TestDryRun(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, calcTarget(t, "gcc", "-O2"))
	pid := p.PID()
	before := testtarget.TextSnapshot(t, pid)
	all := len(mappings(t, pid))
	patch := calcPatch(t, "add_one", 1000, "dry", 1)
	r, results := tryApply(t, pid, "--dry-run", patch)
	if r.run.Exit != 0 || len(results) != 1 || results[0].State != "would-apply" {
		t.Fatalf("it should be planned\n%v", r.run)
	}
	f := results[0].only(t)
	at := exeSymbol(t, pid, "add_one")
	if uint64(f.Old) != at || len(f.Sites) != 1 || uint64(f.Sites[0].Address) != at ||
		f.Sites[0].Old != fmt.Sprintf("%x", peek(t, pid, at, 5)) {
		t.Errorf("the plan is %+v, add_one is at %#x", f, at)
	}
	text := must(t, "apply", "--pid", strconv.Itoa(pid), "--dry-run", patch).Stdout
	for _, want := range []string{"add_one", fmt.Sprintf("%#x", at), "would be applied"} {
		if !strings.Contains(text, want) {
			t.Errorf("the text does not have %q:\n%s", want, text)
		}
	}
	identical(t, before, pid)
	if got := len(mappings(t, pid)); got != all {
		t.Errorf("%d mappings, %d before", got, all)
	}
	answers(t, p, "add_one", 5, 6)
}
