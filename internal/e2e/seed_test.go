package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// seedCase is one way to build and run the seed program.
type seedCase struct {
	compiler, level string
	pie, exported   bool
	threads         int
}

func (c seedCase) String() string {
	pie, exported := "no-pie", "hidden"
	if c.pie {
		pie = "pie"
	}
	if c.exported {
		exported = "exported"
	}
	return fmt.Sprintf("%s/%s/%s/%s/%d", c.compiler, c.level, pie, exported, c.threads)
}

// seedCases is the whole table, or in short tests a few entries that between
// them have every value of every column.
func seedCases() []seedCase {
	if testing.Short() {
		return []seedCase{
			{"g++", "-O0", false, true, 1},
			{"g++", "-O2", true, false, 16},
			{"clang++", "-O1", false, false, 16},
			{"clang++", "-O3", true, true, 1},
		}
	}
	var cases []seedCase
	for _, compiler := range []string{"g++", "clang++"} {
		for _, level := range []string{"-O0", "-O1", "-O2", "-O3"} {
			for _, pie := range []bool{true, false} {
				for _, exported := range []bool{true, false} {
					for _, threads := range []int{1, 16} {
						cases = append(cases, seedCase{compiler, level, pie, exported, threads})
					}
				}
			}
		}
	}
	return cases
}

func (c seedCase) program(t *testing.T) string {
	flags := []string{c.level}
	if c.pie {
		flags = append(flags, "-fPIE", "-pie")
	} else {
		flags = append(flags, "-fno-pie", "-no-pie")
	}
	if c.exported {
		flags = append(flags, "-rdynamic")
	}
	return testtarget.Build(t, testtarget.Spec{Sources: []string{"seed.cc"}, Compiler: c.compiler, Flags: flags})
}

func (c seedCase) patch(t *testing.T, version int) string {
	return testtarget.Build(t, testtarget.Spec{Sources: []string{fmt.Sprintf("seed_p%d.cc", version)}, Compiler: c.compiler,
		Flags: []string{c.level}, Shared: true})
}

// seedSays ends the test unless every thread of a seed program gets this version
// of all three functions.
func seedSays(t testing.TB, p *testtarget.Process, version, threads int) {
	t.Helper()
	want := fmt.Sprintf("now method %d virtual %d function %d threads %d", version, version, version, threads)
	if got := p.Ask("now", "^now "); got != want {
		t.Fatalf("the target says %q, want %q", got, want)
	}
}

// seedClean ends the test if a seed program has seen a wrong result or, in one
// round, two versions at once.
func seedClean(t testing.TB, p *testtarget.Process) {
	t.Helper()
	if got := p.Ask("?", "^all "); !strings.HasSuffix(got, " mixed 0 bad 0") {
		t.Fatalf("the target says %q", got)
	}
}

// TestSeed is the scenario that the project began with, in every way that a
// program may be built.
func TestSeed(t *testing.T) {
	t.Parallel()
	for _, c := range seedCases() {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			p1, p2 := c.patch(t, 1), c.patch(t, 2)
			p := testtarget.Start(t, c.program(t), testtarget.Args("-q", strconv.Itoa(c.threads), "1"))
			pid := strconv.Itoa(p.PID())
			original := testtarget.TextSnapshot(t, p.PID())
			seedSays(t, p, 0, c.threads)

			apply(t, p.PID(), p1)
			seedSays(t, p, 1, c.threads)
			apply(t, p.PID(), p2)
			seedSays(t, p, 2, c.threads)

			patched := testtarget.TextSnapshot(t, p.PID())
			refused(t, 4, "not-newer", "apply", "--pid", pid, p1)
			if again := apply(t, p.PID(), p2); !strings.Contains(again.Stdout, "is applied already") {
				t.Errorf("it should say that the patch is applied already\n%v", again)
			}
			identical(t, patched, p.PID())
			seedSays(t, p, 2, c.threads)

			checkList(t, p.PID(), map[string]string{"seed@1": "shadowed", "seed@2": "active"})
			verify(t, p.PID())
			p.Healthy(t)

			revert(t, p.PID())
			unchanged(t, original, p.PID())
			seedSays(t, p, 0, c.threads)
			checkList(t, p.PID(), nil)
			verify(t, p.PID())
			p.Healthy(t)
			seedClean(t, p)
		})
	}
}

// TestSeedPrints: what the calls print is the patches' text, from the very next
// round on.
func TestSeedPrints(t *testing.T) {
	t.Parallel()
	c := seedCase{"g++", "-O2", true, false, 2}
	p := testtarget.Start(t, c.program(t), testtarget.Args("2", "20"))
	says := func(greeting string) {
		t.Helper()
		p.Ask("now", "^now ") // what was printed before the change
		for _, who := range []string{`C\+\+ member`, `C\+\+ virtual`, "C"} {
			if got := p.Line("^.* from "+who+" function! 42$", testtarget.Timeout); !strings.HasPrefix(got, greeting+" from") {
				t.Fatalf("the target prints %q, want %q", got, greeting)
			}
		}
	}
	says("Hello,")
	apply(t, p.PID(), c.patch(t, 1))
	says("Completely patched!")
	apply(t, p.PID(), c.patch(t, 2))
	says("Patched once more!")
	revert(t, p.PID(), "seed@2")
	says("Completely patched!")
	revert(t, p.PID(), "seed")
	says("Hello,")
	p.Healthy(t)
	seedClean(t, p)
}
