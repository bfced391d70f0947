package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotpatch/elfsym"
	"hotpatch/inject"
	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
	"hotpatch/ptrace"
)

// BenchmarkBorrow measures for how long the thread is away that is borrowed to bring
// code into the process, as that thread sees it, and what another one sees of it.
func BenchmarkBorrow(b *testing.B) {
	build := testtarget.Spec{
		Files: map[string]string{"target.c": source(b, "target.c"), "bare.c": source(b, "bare.c")},
		Flags: []string{"-O2"}, Name: "bare",
	}
	tool := program(b, "borrow.c")
	alone, pair := startBare(b, build, 1), startBare(b, build, 2)
	stub, slots := alone.address(b, "bare_stub"), alone.address(b, "bare_slots")
	agentIn(b, alone.PID(), timed) // makes the region
	agentIn(b, pair.PID(), timed)

	var bare, away samples
	before := sleeps(b, pair.PID())
	for b.Loop() {
		bare = append(bare, alone.longestWhile(func() {
			if out, _, err := run(tool, strconv.Itoa(alone.PID()), slots, stub); err != nil {
				b.Fatalf("borrow: %v\n%s", err, out)
			}
		}))
		away = append(away, agentIn(b, alone.PID(), alone.longestWhile))
		agentIn(b, pair.PID(), timed)
	}
	// A thread that is stopped leaves its processor by itself.
	others := sleeps(b, pair.PID()) - before
	t := newTable("a thread that runs, while code is brought in", "away, µs", "ratio")
	t.row("borrowed, for the bare stub", bare.spread(), "")
	t.row("borrowed, by hotpatch", away.spread(), times(away.ratio(bare)))
	t.row("not borrowed", fmt.Sprintf("stopped %d times in %d", others, len(away)), "")
	report(b, "borrow", t.String())
	bar(b, "borrowed thread", away.ratio(bare), borrowBar, "× bare stub")
	bar(b, "stops of other threads", float64(others), 0, "")
	alone.Healthy(b)
	pair.Healthy(b)
}

func startBare(b *testing.B, build testtarget.Spec, threads int) *target {
	b.Helper()
	file := filepath.Join(b.TempDir(), "longest")
	if err := os.WriteFile(file, make([]byte, 8*threads), 0o600); err != nil {
		b.Fatal(err)
	}
	t := &target{b: b, threads: threads, longest: shared(b, file, 8*threads)}
	t.Process = testtarget.Start(b, testtarget.Build(b, build), testtarget.Args(strconv.Itoa(threads), "watch", file))
	return t
}

func (t *target) longestWhile(f func()) time.Duration {
	t.forget()
	f()
	return t.gap(0)
}

// address gives the address of a symbol of the target, in hexadecimal.
func (t *target) address(b testing.TB, name string) string {
	b.Helper()
	var at string
	t.inspect(func(space *elfsym.Space) {
		found, err := space.Lookup([]string{name})
		if err != nil || len(found[name]) != 1 {
			b.Fatalf("%s: %v, %v", name, found, err)
		}
		at = strconv.FormatUint(found[name][0].Addr, 16)
	})
	return at
}

// agentIn begins what every change begins with, and ends it: a thread is borrowed, and
// starts another one. measure measures that, and not what comes before. As in a command,
// no garbage is collected meanwhile, which would take processors from the target.
func agentIn(b testing.TB, pid int, measure func(func()) time.Duration) (took time.Duration) {
	b.Helper()
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	err := func() error {
		proc, err := procfs.Open(pid)
		if err != nil {
			return err
		}
		defer proc.Close()
		mem, err := proc.Mem(true)
		if err != nil {
			return err
		}
		defer mem.Close()
		space, err := elfsym.Read(proc)
		if err != nil {
			return err
		}
		defer space.Close()
		loader, err := inject.Prepare(proc, mem, space)
		if err != nil {
			return err
		}
		return ptrace.Run(proc, func(tr *ptrace.Tracer) (err error) {
			took = measure(func() {
				var agent *inject.Agent
				if agent, err = loader.Start(tr); err == nil {
					err = agent.Close()
				}
			})
			return err
		})
	}()
	if err != nil {
		b.Fatal(err)
	}
	return took
}

func timed(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

// sleeps is how often the main thread has left its processor by itself.
func sleeps(b *testing.B, pid int) int {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
			count, err := strconv.Atoi(strings.TrimSpace(n))
			if err != nil {
				b.Fatal(err)
			}
			return count
		}
	}
	b.Fatal("no voluntary_ctxt_switches")
	return 0
}
