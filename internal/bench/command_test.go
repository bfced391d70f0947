package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/testtarget"
)

// BenchmarkCommand measures whole commands, from the start of the process to its end.
func BenchmarkCommand(b *testing.B) {
	small := startTarget(b, 1, "sleep", 1)
	large := startLarge(b)
	emptyC, emptyGo := emptyPrograms(b)
	commands := []struct {
		name string
		run  func() ran
		most float64 // milliseconds; 0: no bar
		took []ran
	}{
		{name: "an empty program in C", run: func() ran { return runEmpty(b, emptyC) }},
		{name: "an empty program in Go", run: func() ran { return runEmpty(b, emptyGo) }},
		{name: "`version`: what starting costs", run: func() ran { return runHotpatch(b, false, 0, "version") }},
		{name: "`apply`, one thread", most: commandBar, run: func() ran { return small.apply("stack") }},
		{name: "`verify`, one thread", run: func() ran { return small.hotpatchOnly("verify") }},
		{name: "`revert`, one thread", most: commandBar, run: func() ran { return small.revert("stack") }},
		{name: "`apply`, 200 000 symbols, cold", most: coldBar, run: func() ran { evict(b, large.exe); return large.apply("stack") }},
		{name: "`revert`, 200 000 symbols, cold", most: coldBar, run: func() ran { evict(b, large.exe); return large.revert("stack") }},
		{name: "`apply`, 200 000 symbols, warm", most: warmBar, run: func() ran { return large.apply("stack") }},
		{name: "`revert`, 200 000 symbols, warm", most: warmBar, run: func() ran { return large.revert("stack") }},
		{name: "`symbols`, 200 000 symbols, warm", run: func() ran { return large.hotpatchOnly("symbols", "function_of_the_large_program") }},
	}
	for b.Loop() {
		for i := range commands {
			commands[i].took = append(commands[i].took, commands[i].run())
		}
	}
	t := newTable("command", "milliseconds, start to exit", "processor time outside the kernel", "in the kernel")
	for _, c := range commands {
		var wall samples
		var user, system time.Duration
		for _, r := range c.took {
			wall = append(wall, r.wall)
			user += r.user
			system += r.system
		}
		mean := func(sum time.Duration) float64 { return inMS(sum) / float64(len(c.took)) }
		t.row(c.name, wall.millis(), fmt.Sprintf("%.1f", mean(user)), fmt.Sprintf("%.1f", mean(system)))
		if c.most > 0 {
			bar(b, c.name, inMS(wall.median()), c.most, "ms")
		}
		if c.most == commandBar {
			bar(b, c.name+", outside the kernel", mean(user), ownBar, "ms")
		}
	}
	report(b, "command", t.String())
	small.Healthy(b)
	large.Healthy(b)
}

// emptyPrograms builds programs that do nothing: what the machine takes for any command.
func emptyPrograms(b testing.TB) (inC, inGo string) {
	b.Helper()
	inC = testtarget.Build(b, testtarget.Spec{Files: map[string]string{"empty.c": "int main(void) { return 0; }\n"}, Flags: []string{"-O2"}})
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "empty.go"), []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	inGo = filepath.Join(dir, "empty")
	cmd := exec.Command("go", "build", "-o", inGo, filepath.Join(dir, "empty.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	if out, err := testtarget.Install(inGo); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return inC, inGo
}

func runEmpty(b testing.TB, path string) ran {
	b.Helper()
	out, r, err := run(path)
	if err != nil {
		b.Fatalf("%s: %v\n%s", path, err, out)
	}
	return r
}

// hotpatchOnly runs a command that stops nothing.
func (t *target) hotpatchOnly(verb string, args ...string) ran {
	t.b.Helper()
	return runHotpatch(t.b, false, 0, append([]string{verb, "--json", "--pid", strconv.Itoa(t.PID())}, args...)...)
}

// largeTarget is a target of a program with many symbols.
type largeTarget struct {
	*target
	exe string
}

// startLarge starts a program with 200,000 functions with names as C++ makes them.
func startLarge(b testing.TB) *largeTarget { return startSymbols(b, 200_000) }

func startSymbols(b testing.TB, n int) *largeTarget {
	b.Helper()
	var s strings.Builder
	s.WriteString(".text\n")
	for i := range n {
		fmt.Fprintf(&s, ".globl _ZN6server7module%03d12handler%05d7processERKNS_7RequestEi\n.type _ZN6server7module%03d12handler%05d7processERKNS_7RequestEi, @function\n"+
			"_ZN6server7module%03d12handler%05d7processERKNS_7RequestEi:\nmovl $%d, %%eax\nret\n.size _ZN6server7module%03d12handler%05d7processERKNS_7RequestEi, 6\n.balign 16\n",
			i/1000, i, i/1000, i, i/1000, i, i, i/1000, i)
	}
	s.WriteString(".section .note.GNU-stack,\"\",@progbits\n")
	const main = `#include <stdio.h>
#include <unistd.h>
__attribute__((noinline)) long function_of_the_large_program(long x) { return x * 3; }
int main(void) { printf("READY\n"); fflush(stdout); for (;;) pause(); }
`
	exe := testtarget.Build(b, testtarget.Spec{Files: map[string]string{"large.c": main, "many.S": s.String()}, Flags: []string{"-O1"}, Name: fmt.Sprintf("large%d", n)})
	patch := testtarget.Build(b, testtarget.Spec{
		Files:  map[string]string{"large_patch.c": "long function_of_the_large_program(long x) { return x * 4; }\n"},
		Shared: true, Flags: []string{"-O1"},
	})
	t := &target{b: b, threads: 1, patch: patch}
	t.Process = testtarget.Start(b, exe)
	return &largeTarget{t, exe}
}

// evict takes a file out of the page cache, as far as nobody has it mapped.
func evict(b testing.TB, path string) {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkList compares list over a thousand processes with reading their maps.
func BenchmarkList(b *testing.B) {
	maps := program(b, "maps.c")
	crowd := testtarget.Start(b, program(b, "crowd.c"), testtarget.Args("1000"))
	var least, list samples
	for b.Loop() {
		out, r, err := run(maps)
		if err != nil {
			b.Fatalf("maps: %v\n%s", err, out)
		}
		least = append(least, r.wall)
		list = append(list, runHotpatch(b, false, 0, "list", "--json").wall)
	}
	more := list.median() - least.median()
	t := newTable("of 1000 processes", "milliseconds")
	t.row("reading the maps, in C", least.millis())
	t.row("`hotpatch list`", list.millis())
	t.row("more", fmt.Sprintf("%.1f", inMS(more)))
	report(b, "list", t.String())
	bar(b, "`list` of 1000 processes, more than reading their maps", inMS(more), listBar, "ms")
	crowd.Healthy(b)
}
