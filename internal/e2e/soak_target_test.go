package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// soakProgram starts one of the soak's own targets, with a patch that makes plus_one
// do what it does already.
func soakProgram(t *testing.T, source string, flags []string, options ...testtarget.Option) (*testtarget.Process, string) {
	t.Helper()
	path := testtarget.Build(t, testtarget.Spec{Sources: []string{source}, Flags: append([]string{"-O2", "-pthread"}, flags...)})
	return testtarget.Start(t, path, options...), calcPatch(t, "plus_one", 1, "soak", 1)
}

// settled asks a program what it has counted: the numbers of its answer to "settle".
func settled(t *testing.T, p *testtarget.Process) map[string]int {
	t.Helper()
	counts := make(map[string]int)
	for _, m := range regexp.MustCompile(`(\w+) (\d+)`).FindAllStringSubmatch(strings.TrimPrefix(p.Ask("settle", "^settled "), "settled "), -1) {
		counts[m[1]] = int(parseNumber(t, m[2]))
	}
	return counts
}

func parseNumber(t testing.TB, s string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.Fields(s)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// rounds applies and reverts a patch until the budget is used up, and counts.
func (f *figures) rounds(t *testing.T, b budget, p *testtarget.Process, patch string) {
	t.Helper()
	for ; b.more(f.trials); f.trials++ {
		f.does(t, "apply", "--pid", strconv.Itoa(p.PID()), patch)
		f.does(t, "revert", "--pid", strconv.Itoa(p.PID()), "--all")
		f.survived++
	}
	p.Healthy(t)
}

// soakSignals floods the target with signals while it is patched.
func soakSignals(t *testing.T, b budget) (f figures) {
	p, patch := soakProgram(t, "soak_signals.c", nil)
	f.rounds(t, b, p, patch)
	counts := settled(t, p)
	tally := func(sent, received int) {
		f.counted += sent
		f.lost += max(sent-received, 0)
		f.added += max(received-sent, 0)
	}
	tally(counts["sent"], counts["received"])
	tally(counts["children"], counts["sigchld"])
	if d := counts["expected"] - counts["ticks"]; d < -1 || d > 1 { // one may be on its way
		tally(counts["expected"], counts["ticks"])
	} else {
		f.counted += counts["ticks"]
	}
	f.lost += counts["wrong"]
	f.note = fmt.Sprintf("of them %s of a timer of 10 kHz, %s SIGCHLD", many(counts["ticks"]), many(counts["sigchld"]))
	if b.least >= 100 && f.counted < 10_000_000 {
		t.Errorf("only %d signals", f.counted)
	}
	return f
}

// soakTorture patches the torture program and gives how often its checks went round.
func soakTorture(t *testing.T, b budget, modes ...string) (f figures) {
	p, patch := torture(t, append([]string{"-k", "threads"}, modes...)...)
	f.rounds(t, b, p, patch)
	for name, n := range tortureCounts(t, p) {
		if name == "wrong" {
			f.lost += n
		} else {
			f.counted += n
		}
	}
	return f
}

// soakCalls has every blocking system call going on while the target is patched: none
// ends early, late, or with EINTR.
func soakCalls(t *testing.T, b budget) figures {
	f := soakTorture(t, b, "syscalls")
	f.note = "calls that ended as they should; wrong ones would be EINTR or a timeout that is short or long"
	return f
}

// soakRegisters has every register held while the target is patched.
func soakRegisters(t *testing.T, b budget) figures {
	path := testtarget.Build(t, testtarget.Spec{Sources: []string{"soak_tiles.c"}, Flags: []string{"-O2", "-pthread", "-mamx-tile"}})
	part, tiles := b, true
	if err := exec.Command(path).Run(); exitStatus(err) == 3 {
		tiles = false
	} else {
		part = budget{time.Now().Add(time.Until(b.until) / 2), (b.least + 1) / 2, b.long}
	}
	f := soakTorture(t, part, "spin", "errno", "dispositions")
	f.note = "rounds of all registers, flags, red zone, errno, dispositions and masks"
	if !tiles {
		f.note += "; this machine has no tiles"
		return f
	}
	p := testtarget.Start(t, path)
	f.rounds(t, b, p, calcPatch(t, "plus_one", 1, "soak", 1))
	counts := settled(t, p)
	f.counted += counts["rounds"]
	f.lost += counts["wrong"]
	f.note += fmt.Sprintf("; %s of them of the tiles", many(counts["rounds"]))
	return f
}

func exitStatus(err error) int {
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	return 0
}

// soakSequences has the target in restartable sequences while it is patched.
func soakSequences(t *testing.T, b budget) (f figures) {
	p, patch := soakProgram(t, "soak_sequences.c", nil, testtarget.Unready())
	if line := p.Line("^READY|registers no", testtarget.Timeout); !strings.HasPrefix(line, "READY") {
		testtarget.Unavailable(t, "%s", line)
	}
	f.rounds(t, b, p, patch)
	counts := settled(t, p)
	f.counted = counts["sent"]
	f.lost = max(counts["sent"]-counts["received"], 0) + counts["wrong"]
	f.added = max(counts["received"]-counts["sent"], 0)
	f.note = fmt.Sprintf("%s sequences were aborted and begun again", many(counts["aborted"]))
	return f
}

// soakSeveral runs several hotpatch at once on one target: they wait for each other.
func soakSeveral(t *testing.T, b budget) (f figures) {
	s := newSoakTarget(t, 4)
	const at = 8
	for ; b.more(f.trials); f.trials++ {
		var all sync.WaitGroup
		results := make([]testtarget.Result, at)
		for i := range at {
			args := [][]string{{"apply", "--pid", s.pid(), s.p1}, {"apply", "--pid", s.pid(), s.p2}, {"revert", "--pid", s.pid(), "--all"}, {"list", "--pid", s.pid()}}[i%4]
			all.Add(1)
			go func() {
				defer all.Done()
				results[i] = testtarget.Run(t, append(args, map[bool][]string{true: nil, false: {"--timeout", "60s"}}[args[0] == "list"]...)...)
			}()
		}
		all.Wait()
		for _, r := range results {
			// An older version over a newer one is refused; and there may be nothing to revert.
			if !slices.Contains([]int{0, 4, 7}, r.Exit) {
				t.Fatal(r)
			}
		}
		verify(t, s.p.PID())
		revert(t, s.p.PID())
		unchanged(t, s.original, s.p.PID())
		seedSays(t, s.p, 0, s.c.threads)
		f.survived++
	}
	f.note = fmt.Sprintf("%d commands at a time", at)
	return f
}

// soakResidue applies and reverts over and over: nothing becomes more.
func soakResidue(t *testing.T, b budget) (f figures) {
	s := newSoakTarget(t, 4)
	files := func() int { return len(filesUnder(t, os.TempDir(), "hotpatch")) }
	once := func() {
		f.does(t, "apply", "--pid", s.pid(), s.p1)
		f.does(t, "revert", "--pid", s.pid(), "--all")
	}
	for range 20 { // what is there after the first time, and has settled
		once()
	}
	had, memory, left := resourcesOf(t, s.p.PID()), parseNumber(t, statusField(t, s.p.PID(), "VmRSS")), files()
	for ; b.more(f.trials); f.trials++ {
		once()
		f.survived++
	}
	has, now := resourcesOf(t, s.p.PID()), parseNumber(t, statusField(t, s.p.PID(), "VmRSS"))
	if has != had {
		f.added++
		t.Errorf("before %+v, after %+v", had, has)
	}
	if now > memory+64 { // KiB; the heap of the C library breathes
		f.added++
		t.Errorf("resident were %d KiB, and are %d", memory, now)
	}
	if n := files(); n > left {
		f.added++
		t.Errorf("there were %d files, and there are %d", left, n)
	}
	unchanged(t, s.original, s.p.PID())
	s.settle(t, "afterwards")
	f.note = fmt.Sprintf("applies and reverts; %d mappings, %d descriptors, %d threads, before and after; %+d KiB resident", has.mappings, has.descriptors, has.threads, now-memory)
	return f
}

// filesUnder gives the entries of a directory whose names have a word in them, but for
// those that the tests make.
func filesUnder(t *testing.T, dir, word string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), word) && !strings.HasPrefix(e.Name(), "hotpatch-") && !strings.HasPrefix(e.Name(), "hotpatch.") {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names
}

// soakStates patches processes in every state.
func soakStates(t *testing.T, b budget) (f figures) {
	path := testtarget.Build(t, testtarget.Spec{Sources: []string{"soak_states.c"}, Flags: []string{"-O2", "-pthread"}})
	patch := calcPatch(t, "plus_one", 1000, "soak", 1)
	start := func(state string, options ...testtarget.Option) *testtarget.Process {
		return testtarget.Start(t, path, append([]testtarget.Option{testtarget.Args(state, "0")}, options...)...)
	}
	patched := func(p *testtarget.Process) {
		before := testtarget.TextSnapshot(t, p.PID())
		apply(t, p.PID(), patch)
		p.Ask("?", `^plus_one\(1\) = 1001 `)
		revert(t, p.PID())
		p.Ask("?", `^plus_one\(1\) = 2 `)
		unchanged(t, before, p.PID())
		p.Healthy(t)
	}
	works := func(state string, options ...testtarget.Option) func() {
		return func() {
			p := start(state, append(options, testtarget.Unready())...)
			if p.Exited(200 * time.Millisecond) { // status 3: this machine does not have it
				if s := p.Wait(testtarget.Timeout); s.ExitStatus() != 3 {
					t.Fatalf("%s ended with %#x", state, s)
				}
				return
			}
			p.Line("^READY", testtarget.Timeout)
			patched(p)
			p.Stop()
		}
	}
	preloaded := func(library string) func() {
		return func() {
			found, err := filepath.Glob("/usr/lib/x86_64-linux-gnu/" + library)
			if err != nil || len(found) == 0 {
				testtarget.Unavailable(t, "%s is not installed; scripts/test installs what the tests need", library)
			}
			p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: tortureSources, Flags: []string{"-O2"}}),
				testtarget.Args("malloc", "threads"), testtarget.Env("LD_PRELOAD="+found[0]))
			underPatches(t, p, calcPatch(t, "plus_one", 1, "torture", 1), 2)
			p.Stop()
		}
	}
	trials := []struct {
		name string
		run  func()
	}{
		{"plain", works("plain")},
		{"no-new-privs", works("no-new-privs")},
		{"not-dumpable", works("not-dumpable")},
		{"no-gain", works("no-gain")},
		{"real-time", works("real-time")},
		{"spawns", works("spawns")},
		{"read-only file system", func() {
			testtarget.NeedRoot(t)
			p := testtarget.Start(t, "/usr/bin/unshare", testtarget.Args("-m", "sh", "-c", "mount -o remount,bind,ro / && exec "+path+" plain"))
			patched(p)
			p.Stop()
		}},
		{"stopped by job control", func() {
			p := start("plain")
			if err := syscall.Kill(p.PID(), syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			r := testtarget.Run(t, "apply", "--pid", strconv.Itoa(p.PID()), "--timeout", "5s", patch)
			if err := syscall.Kill(p.PID(), syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if r.Exit != 0 && r.Exit != 3 {
				t.Fatal(r)
			}
			p.Ask("?", map[int]string{0: `= 1001 `, 3: `= 2 `}[r.Exit])
			p.Stop()
		}},
		{"strict seccomp", func() {
			p := start("strict")
			before := testtarget.TextSnapshot(t, p.PID())
			refused(t, 5, "seccomp", "apply", "--pid", strconv.Itoa(p.PID()), patch)
			identical(t, before, p.PID())
			p.Ask("?", `^plus_one\(1\) = 2 `)
			p.Stop()
		}},
		{"exits meanwhile", func() {
			p := testtarget.Start(t, path, testtarget.Args("exits", strconv.Itoa(rand.IntN(15000))))
			r := testtarget.Run(t, "apply", "--pid", strconv.Itoa(p.PID()), calcPatch(t, "plus_one", 1, "soak", 1))
			if s := p.Wait(testtarget.Timeout); !s.Exited() || s.ExitStatus() != 42 {
				t.Fatalf("the program ended with %#x\n%v", s, r)
			}
		}},
		{"executes itself meanwhile", func() {
			p := start("execs")
			for range 20 {
				_ = testtarget.Run(t, "apply", "--pid", strconv.Itoa(p.PID()), calcPatch(t, "plus_one", 1, "soak", 1)) // whatever it is met in
			}
			p.Healthy(t)
			count := func() int64 {
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID()))
				if err != nil {
					t.Fatal(err)
				}
				words := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
				n, err := strconv.ParseInt(words[len(words)-1], 10, 64)
				if err != nil {
					return -1 // it is executing itself just now
				}
				return n
			}
			for n, end := count(), time.Now().Add(testtarget.Timeout); n < 0 || count() <= n; time.Sleep(time.Millisecond) {
				if n < 0 {
					n = count()
				}
				if time.Now().After(end) {
					t.Fatal("it does not go on")
				}
			}
			p.Stop()
		}},
		{"threads, fork, dlopen", func() {
			p, patch := torture(t, "threads", "fork", "dlopen", "malloc")
			underPatches(t, p, patch, 2)
			p.Stop()
		}},
		{"jemalloc", preloaded("libjemalloc.so.2")},
		{"tcmalloc", preloaded("libtcmalloc_minimal.so.4")},
		{"runtime of Go", func() {
			p := testtarget.Start(t, goTarget(t))
			apply(t, p.PID(), patch)
			p.Ask("?", `^plus_one\(1\) = 1001$`)
			for range 5 {
				revert(t, p.PID())
				apply(t, p.PID(), patch)
			}
			revert(t, p.PID())
			p.Ask("?", `^plus_one\(1\) = 2$`)
			p.Healthy(t)
			p.Stop()
		}},
	}
	var names []string
	for n := 0; n < len(trials) || b.more(f.trials); n++ {
		trial := trials[n%len(trials)]
		if n < len(trials) {
			names = append(names, trial.name)
		}
		f.trials++
		trial.run()
		f.survived++
	}
	f.note = strings.Join(names, "; ")
	return f
}

// goTarget builds a program of Go's with a function in C, which its goroutines call
// while its garbage collector runs.
func goTarget(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source := `package main

/*
__attribute__((noinline)) long plus_one(long x) { __asm__ volatile("" : "+r"(x)); return x + 1; }
*/
import "C"

import (
	"bufio"
	"fmt"
	"os"
)

func main() {
	for range 8 {
		go func() {
			var kept [][]byte
			for i := 0; ; i++ {
				if C.plus_one(1) < 2 {
					panic("wrong")
				}
				if kept = append(kept, make([]byte, 1024)); len(kept) == 1000 {
					kept = nil
				}
			}
		}()
	}
	fmt.Println("READY", os.Getpid())
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Printf("plus_one(1) = %d\n", C.plus_one(1))
	}
}
`
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-o", program, filepath.Join(dir, "main.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1", "GOFLAGS=-mod=mod", "GO111MODULE=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return program
}
