package testtarget

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The tests in this file are about the targets themselves: unpatched, they do
// what their comments say, whoever compiled them.

var (
	calcSources    = []string{"calc.c", "calc_a.c", "calc_b.c", "calc_asm.S"}
	tortureSources = []string{"torture.c", "torture_checks.c", "torture_syscalls.c", "torture_spin.S"}
)

// builds are the compilers and flags that a target is tried with. In short
// tests, only the first and the last.
func builds(compilers ...string) []Spec {
	var specs []Spec
	for _, compiler := range compilers {
		for _, level := range []string{"-O0", "-O2"} {
			specs = append(specs, Spec{Compiler: compiler, Flags: []string{level}})
		}
	}
	if testing.Short() {
		specs = []Spec{specs[0], specs[len(specs)-1]}
	}
	return specs
}

func each(t *testing.T, specs []Spec, f func(t *testing.T, s Spec)) {
	for _, s := range specs {
		name := strings.Join(append([]string{s.Tree, s.Compiler}, s.Flags...), " ")
		t.Run(strings.TrimSpace(name), func(t *testing.T) {
			t.Parallel()
			f(t, s)
		})
	}
}

// inTree gives the options that run what s builds.
func inTree(s Spec) []Option {
	if s.Tree == "" {
		return nil
	}
	return []Option{InTree(s.Tree)}
}

func TestSeed(t *testing.T) {
	t.Parallel()
	each(t, builds("g++", "clang++"), func(t *testing.T, s Spec) {
		s.Sources = []string{"seed.cc"}
		path := Build(t, s)
		for _, threads := range []int{1, 16} {
			p := Start(t, path, Args("-q", strconv.Itoa(threads), "1"))
			want := fmt.Sprintf("now method 0 virtual 0 function 0 threads %d", threads)
			if got := p.Ask("now", "^now"); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			p.Send("?")
			for i := range threads {
				p.Line(fmt.Sprintf("^thread %d old [1-9][0-9]* new1 0 new2 0 mixed 0 bad 0$", i), Timeout)
			}
			p.Line("^all old [1-9][0-9]* new1 0 new2 0 mixed 0 bad 0$", Timeout)
			p.Healthy(t)
		}

		p := Start(t, path, Args("1", "1"))
		for _, want := range []string{"C++ member", "C++ virtual", "C"} {
			p.Line(fmt.Sprintf("^Hello, from %s function! 42$", regexp.QuoteMeta(want)), Timeout)
		}
		p.Send("quit")
		if got := p.Wait(Timeout); got.ExitStatus() != 0 {
			t.Errorf("it ended with %v", got)
		}
	})
}

// TestSeedNotices: a thread that sees one old and one new function counts it,
// and so does the question "now". The build has one function of a patch.
func TestSeedNotices(t *testing.T) {
	t.Parallel()
	root := Root(t)
	source, err := os.ReadFile(filepath.Join(root, "testdata/targets/seed.cc"))
	if err != nil {
		t.Fatal(err)
	}
	old := []byte(`return say("Hello,", 0, number, who); }`)
	if bytes.Count(source, old) != 1 {
		t.Fatal("the source does not have the one line that this test changes")
	}
	changed := bytes.Replace(source, old, []byte(`return say("New,", 1, number, who); }`), 1)
	p := Start(t, Build(t, Spec{Files: map[string]string{"seed.cc": string(changed)}}), Args("-q", "2", "1"))
	if got, want := p.Ask("now", "^now"), "now method 0 virtual 0 function 1 threads 2"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	p.Ask("?", "^all old [1-9][0-9]* new1 [1-9][0-9]* new2 0 mixed [1-9][0-9]* bad 0$")
}

var calcResults = map[string]int{
	"add_one": 6, "times_two": 10, "weak_fn": 12, "original_name": 14, "alias_name": 14, "twin_a": 36, "twin_b": 36,
	"chosen": 19, "clone_cold": 37, "with_constprop": 35, "with_isra": 36, "waits_inside": 26, "spin_while_closed": 27,
	"recursive": 5, "mutual_even": 0, "mutual_odd": 1, "parameters": 990, "calls_at_3": 6, "a_same": 105,
	"b_same": 205, "short3": 5, "short3_next": 6, "short3_padded": 5, "short3_int3": 5, "loop_to_5": 15,
	"branch_to_2": 15, "call_at_9": 6, "call_at_5": 6, "endbr": 8, "rip_relative": 45, "jump_away": 11,
	"page_cross": 10, "mod0": 5, "mod1": 6, "mod2": 7, "mod3": 8, "mod4": 9, "mod5": 10, "mod6": 11, "mod7": 12,
	"calc_wait": 5,
}

func TestCalc(t *testing.T) {
	t.Parallel()
	specs := builds("gcc", "clang", "musl-gcc")
	specs = append(specs, Spec{Compiler: "gcc", Flags: []string{"-O2", "-fpatchable-function-entry=16,14", "-no-pie"}},
		Spec{Compiler: "gcc", Flags: []string{"-Os", "-fcf-protection"}, Strip: true})
	each(t, specs, func(t *testing.T, s Spec) {
		s.Sources = calcSources
		p := Start(t, Build(t, s))
		for name, want := range calcResults {
			if s.Compiler == "musl-gcc" && name == "chosen" {
				want-- // musl has no IFUNC: it is the generic function
			}
			line := fmt.Sprintf("%s(5) = %d", name, want)
			if got := p.Ask("call "+name+" 5", "="); got != line {
				t.Errorf("%q, want %q", got, line)
			}
		}
		for _, question := range []string{"direct add_one 5", "signal add_one 5", "thread add_one 5"} {
			if got := p.Ask(question, "="); got != "add_one(5) = 6" {
				t.Errorf("%s: %q", question, got)
			}
		}

		p.Ask("gate close", "^gate closed")
		blocking := map[string]int{"call_at_9": 2, "call_at_5": 2, "calls_at_3": 2, "spin_while_closed": 23, "forever": 0}
		for name := range blocking {
			p.Ask("thread "+name+" 1", "^waiting 1$")
		}
		if got := p.Ask("call add_one 5", "="); got != "add_one(5) = 6" { // nobody has returned
			t.Error(got)
		}
		p.Ask("load 3 add_one 9", "^loading 3$")
		p.Send("gate open")
		seen := make(map[string]bool)
		for range len(blocking) - 1 {
			seen[p.Line("=", Timeout)] = true
		}
		for name, result := range blocking {
			if line := fmt.Sprintf("%s(1) = %d", name, result); seen[line] == (name == "forever") {
				t.Errorf("%q: %v", line, seen[line])
			}
		}
		// The first load may have begun only now.
		for deadline := time.Now().Add(Timeout); ; time.Sleep(time.Millisecond) {
			line := p.Ask("loaded", "^load")
			if regexp.MustCompile(`^load [1-9]\d*: 10 x[1-9]\d*$`).MatchString(line) {
				break
			}
			if line != "load 0:" || time.Now().After(deadline) {
				t.Fatal(line)
			}
		}
		if got := p.Ask("call count 0", "="); got != "count(0) = 6003" {
			t.Error(got)
		}
		if got := p.Ask("show", "hidden"); got != "hidden 1001 visible 2001 tls 3001" {
			t.Error(got)
		}
		p.Healthy(t)
	})
}

// TestCalcLayout: the assembler functions lie as their comments say.
func TestCalcLayout(t *testing.T) {
	t.Parallel()
	Need(t, "nm")
	out, err := exec.Command("nm", "-S", calculator(t)).Output()
	if err != nil {
		t.Fatal(err)
	}
	address, size := make(map[string]uint64), make(map[string]uint64)
	for line := range strings.Lines(string(out)) {
		var a, n uint64
		var kind, name string
		if count, _ := fmt.Sscanf(line, "%x %x %s %s", &a, &n, &kind, &name); count == 4 {
			address[name], size[name] = a, n
		}
	}
	if address["short3_next"] != address["short3"]+3 || size["short3"] != 3 {
		t.Errorf("short3 is %d bytes at %#x, and the next function is at %#x", size["short3"], address["short3"], address["short3_next"])
	}
	if address["page_cross"]%4096 != 4094 {
		t.Errorf("page_cross is at %#x", address["page_cross"])
	}
	for n := range uint64(8) {
		if at := address[fmt.Sprintf("mod%d", n)]; at == 0 || at%8 != n {
			t.Errorf("mod%d is at %#x", n, at)
		}
	}
	if address["original_name"] != address["alias_name"] {
		t.Error("the alias has an address of its own")
	}
}

func TestShape(t *testing.T) {
	t.Parallel()
	want := "1103 1103 1103 1103 1103 1103 1103 1103 1103 1203 1203 1203 1501 1501 " +
		"1021 1011 1032 1303 1403 1203 1303 1604 1705 1705 1715 1726 1737 1705 1001 3800 3800"
	check := func(t *testing.T, path string) {
		t.Helper()
		p := Start(t, path)
		p.Ask("all", "^all done$")
		var got []string
		for _, line := range p.Lines()[1:] {
			if _, result, ok := strings.Cut(line, " = "); ok {
				got = append(got, result)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("results %s\nwant    %s", strings.Join(got, " "), want)
		}
		p.Ask("b_pointer_d", "^b_pointer_d = 1203$")
	}
	each(t, builds("g++", "clang++"), func(t *testing.T, s Spec) {
		both, unit, library, user := s, s, s, s
		both.Sources = []string{"shape_main.cc", "shape.cc"}
		check(t, Build(t, both))
		unit.Sources, unit.Flags = []string{"shape_main.cc"}, append(unit.Flags[:1:1], "-DSHAPE_ONE_UNIT", "-fno-rtti")
		check(t, Build(t, unit))
		library.Sources, library.Shared, library.Name = []string{"shape.cc"}, true, "libshape.so"
		user.Sources, user.Libs = []string{"shape_main.cc"}, []string{Build(t, library)}
		check(t, Build(t, user))
	})
}

func TestCopies(t *testing.T) {
	t.Parallel()
	each(t, builds("g++", "clang++"), func(t *testing.T, s Spec) {
		a, b := s, s
		a.Sources, a.Shared, a.Name = []string{"copies_lib.cc"}, true, "liba.so"
		b.Sources, b.Shared, b.Name = []string{"copies_lib.cc"}, true, "libb.so"
		s.Sources = []string{"copies.cc"}
		p := Start(t, Build(t, s), Args(Build(t, a), Build(t, b)))
		p.Ask("answer 1", "^answer 42 42 42$")
		p.Ask("thrice 2", "^thrice 6 6 6$")
		p.Ask("library 3", "^library 53 53$")
		p.Ask("unload", "^unloaded$")
		p.Ask("library 3", "^library 53$")
		p.Ask("load "+Build(t, b), "^loaded")
		p.Ask("answer 1", "^answer 42 42 42$")
	})
}

func TestCoroutineAndThrows(t *testing.T) {
	t.Parallel()
	p := Start(t, Build(t, Spec{Sources: []string{"coroutine.c"}, Flags: []string{"-O2"}}))
	p.Ask("step", "^step 2$")
	p.Ask("leave", "^left 77$")
	p.Ask("step", "^step 3$")
	p = Start(t, Build(t, Spec{Sources: []string{"throws.cc"}, Flags: []string{"-O2"}}))
	p.Ask("throw 5", "^caught 5 destroyed 1$")
	p.Ask("throw -1", "^returned 0$")
}

// TestPatchesCompile: every patch source compiles, with both compilers.
func TestPatchesCompile(t *testing.T) {
	t.Parallel()
	for _, source := range []string{"seed_p1.cc", "seed_p2.cc", "shape_p1.cc", "shape_clone.cc", "copies_p1.cc",
		"throws_p1.cc", "calc_p1.c", "calc_hooks.c", "calc_patch.c"} {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			compilers := []string{"gcc", "clang"}
			if strings.HasSuffix(source, ".cc") {
				compilers = []string{"g++", "clang++"}
			}
			for _, compiler := range compilers {
				flags := []string{"-O2", "-Wall", "-Wextra", "-Werror"}
				if source == "calc_patch.c" {
					flags = append(flags, "-DNAME=add_one", "-DPLUS=1000", "-DVERSION=1", `-DPATCH="one"`)
				}
				Build(t, Spec{Sources: []string{source}, Compiler: compiler, Flags: flags, Shared: true})
			}
		})
	}
}

var counter = regexp.MustCompile(`(\w+)=(\d+)`)

// progress asks a torture until every check has gone round once more than
// before, and gives the last answer.
func progress(t *testing.T, p *Process) string {
	t.Helper()
	first := p.Ask("?", "^status")
	counts := func(line string) map[string]int {
		m := make(map[string]int)
		for _, match := range counter.FindAllStringSubmatch(line, -1) {
			m[match[1]], _ = strconv.Atoi(match[2]) // the expression takes digits only
		}
		return m
	}
	before := counts(first)
	if len(before) < 2 {
		t.Fatalf("nothing runs: %q", first)
	}
	for deadline := time.Now().Add(2 * Timeout); ; time.Sleep(20 * time.Millisecond) {
		line := p.Ask("?", "^status")
		now, late := counts(line), ""
		for name := range before {
			if now[name] <= before[name] && name != "pause" && name != "wrong" {
				late = name
			}
		}
		if late == "" {
			return line
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not go on\n%s\n%s", late, first, line)
		}
	}
}

func TestTorture(t *testing.T) {
	t.Parallel()
	specs := builds("gcc", "clang", "musl-gcc")
	for _, tree := range Trees {
		specs = append(specs, Spec{Tree: tree, Compiler: "gcc", Flags: []string{"-O2"}})
	}
	each(t, specs, func(t *testing.T, s Spec) {
		s.Sources = tortureSources
		modes := []string{"spin", "malloc", "fork", "threads", "errno", "dispositions", "signals", "syscalls"}
		if s.Compiler != "musl-gcc" {
			modes = append(modes, "dlopen") // musl never unloads: there is no storm
		}
		p := Start(t, Build(t, s), append(inTree(s), Args(modes...))...)
		if line := progress(t, p); !strings.HasSuffix(line, " wrong=0") {
			t.Error(line)
		}
		settled := regexp.MustCompile(`^settled sent ([1-9]\d*) received (\d+) wrong 0$`)
		if m := settled.FindStringSubmatch(p.Ask("settle", "^settled")); m == nil || m[1] != m[2] {
			t.Errorf("signals: %q", m)
		}
		p.Healthy(t)
	})
}

// TestTortureNotices: a debugger changes one register of a thread that relies
// on it, and the torture says so.
func TestTortureNotices(t *testing.T) {
	t.Parallel()
	Need(t, "gdb")
	p := Start(t, Build(t, Spec{Sources: tortureSources, Flags: []string{"-O2"}}), Args("spin"))
	script := filepath.Join(t.TempDir(), "change.gdb")
	const change = `thread 2
if (unsigned long)$pc >= (unsigned long)&spin_registers && (unsigned long)$pc < (unsigned long)&spin_registers + 1000
set $r12 = 0x12345
end
detach
`
	if err := os.WriteFile(script, []byte(change), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 20 { // hardly ever, the thread is between two rounds
		cmd := exec.Command("gdb", "-nx", "-batch", "-p", strconv.Itoa(p.PID()), "-x", script)
		if out, err := cmd.CombinedOutput(); err != nil && !p.Exited(0) {
			t.Fatalf("gdb: %v\n%s", err, out)
		}
		if p.Exited(time.Second) {
			break
		}
	}
	if got := p.Wait(0); got.ExitStatus() != 1 {
		t.Errorf("it ended with %v", got)
	}
	p.Line("^WRONG spin: r12 is 0x12345 instead of ", Timeout)
}

// TestTrees: what is built in a tree is built by its compiler, and runs there.
func TestTrees(t *testing.T) {
	t.Parallel()
	compilers := map[string]string{"bullseye": "GCC: (Debian 10", "trixie": "GCC: (Debian 14"}
	for _, tree := range Trees {
		t.Run(tree, func(t *testing.T) {
			t.Parallel()
			root := Tree(t, tree)
			s := Spec{Sources: []string{"seed.cc"}, Flags: []string{"-O2"}, Tree: tree}
			path := Build(t, s)
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(content, []byte(compilers[tree])) {
				t.Errorf("%s is not of %q", path, compilers[tree])
			}
			p := Start(t, path, InTree(tree), Args("-q", "2", "1"))
			if got := p.Ask("now", "^now"); got != "now method 0 virtual 0 function 0 threads 2" {
				t.Error(got)
			}
			if got, err := os.Readlink(fmt.Sprintf("/proc/%d/root", p.PID())); err != nil || got != root {
				t.Errorf("its root is %q, %v; want %q", got, err, root)
			}
			if got, want := p.Lines()[0], fmt.Sprintf("READY %d", p.PID()); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			p.Healthy(t)
		})
	}
}

func TestBuildCache(t *testing.T) {
	t.Parallel()
	s := Spec{Files: map[string]string{"tiny.c": "int tiny(void) { return TINY; }\n", "extra.h": "#define EXTRA 1\n"},
		Flags: []string{"-DTINY=1"}, Shared: true}
	paths := make(chan string, 4)
	for range cap(paths) {
		go func() {
			path := "" // if Build ends the goroutine
			defer func() { paths <- path }()
			path = Build(t, s)
		}()
	}
	first := <-paths
	for range cap(paths) - 1 {
		if path := <-paths; path != first {
			t.Errorf("the same source is at %s and %s", first, path)
		}
	}
	if filepath.Base(first) != "tiny.so" {
		t.Errorf("it is called %s", first)
	}
	if entries, err := os.ReadDir(filepath.Dir(first)); err != nil || len(entries) != 1 {
		t.Errorf("beside it: %v, %v", entries, err)
	}
	other := s
	other.Flags = []string{"-DTINY=2"}
	if Build(t, other) == first {
		t.Error("other flags give the same file")
	}
	header := s
	header.Files = map[string]string{"tiny.c": s.Files["tiny.c"], "extra.h": "#define EXTRA 2\n"}
	if Build(t, header) == first {
		t.Error("another header gives the same file")
	}
	copied := Copy(t, first)
	if copied == first || filepath.Base(copied) != "tiny.so" {
		t.Errorf("the copy is %s", copied)
	}
}

// TestOtherKinds: what hotpatch refuses can be built and run, too.
func TestOtherKinds(t *testing.T) {
	t.Parallel()
	for name, flag := range map[string]string{"32-bit": "-m32", "static": "-static"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if flag == "-m32" {
				Need32Bit(t)
			}
			NeedFlags(t, "gcc", flag)
			p := Start(t, Build(t, Spec{Sources: []string{"coroutine.c"}, Compiler: "gcc", Flags: []string{flag}}))
			p.Ask("step", "^step 2$")
		})
	}
}
