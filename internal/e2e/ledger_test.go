package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"hotpatch/internal/testtarget"
)

func calculator(t testing.TB) *testtarget.Process {
	t.Helper()
	return testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: calcSources, Flags: []string{"-O2"}}))
}

// TestStackAndRevertInAnyOrder: of three patches of one function, the highest
// that is left is in force, in whatever order they are taken out.
func TestStackAndRevertInAnyOrder(t *testing.T) {
	t.Parallel()
	orders := [][3]int{{3, 2, 1}, {1, 2, 3}, {2, 1, 3}, {2, 3, 1}, {1, 3, 2}, {3, 1, 2}}
	for _, order := range some(orders, 1, 3) {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			t.Parallel()
			p := calculator(t)
			original := testtarget.TextSnapshot(t, p.PID())
			applied := make(map[int]bool)
			check := func() {
				t.Helper()
				top, want := 0, make(map[string]string)
				for version := range applied {
					top = max(top, version)
				}
				for version := range applied {
					want[fmt.Sprintf("stack@%d", version)] = "shadowed"
				}
				plus := 1
				if top > 0 {
					want[fmt.Sprintf("stack@%d", top)] = "active"
					plus = 1000 * top
				}
				answers(t, p, "add_one", 5, 5+plus)
				checkList(t, p.PID(), want)
				verify(t, p.PID())
			}
			for version := 1; version <= 3; version++ {
				apply(t, p.PID(), calcPatch(t, "add_one", 1000*version, "stack", version))
				applied[version] = true
				check()
			}
			for _, version := range order {
				revert(t, p.PID(), fmt.Sprintf("stack@%d", version))
				delete(applied, version)
				check()
			}
			unchanged(t, original, p.PID())
			refused(t, 4, "not-applied", "revert", "--pid", strconv.Itoa(p.PID()), "stack@1")
			p.Healthy(t)
		})
	}
}

// TestOnlyHigherVersions: a function is replaced only by a higher version than
// it has, whatever the patch is called.
func TestOnlyHigherVersions(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	pid := strconv.Itoa(p.PID())
	apply(t, p.PID(), calcPatch(t, "add_one", 3000, "three", 3))
	before := testtarget.TextSnapshot(t, p.PID())
	for _, c := range []struct {
		name    string
		version int
		code    string
	}{
		{"two", 2, "not-newer"}, {"other", 3, "not-newer"}, {"three", 1, "not-newer"}, {"three", 3, "same-version"},
	} {
		refused(t, 4, c.code, "apply", "--pid", pid, calcPatch(t, "add_one", 7, c.name, c.version))
	}
	identical(t, before, p.PID())
	answers(t, p, "add_one", 5, 3005)
	// Another function is another matter.
	apply(t, p.PID(), calcPatch(t, "recursive", 7, "two", 2))
	answers(t, p, "recursive", 5, 12)
	// And once the higher one is gone, the lower one fits.
	revert(t, p.PID(), "three")
	apply(t, p.PID(), calcPatch(t, "add_one", 2000, "late", 2))
	answers(t, p, "add_one", 5, 2005)
	// What takes the place of another patch says so.
	says(t, must(t, "apply", "--pid", pid, calcPatch(t, "add_one", 4000, "later", 3)), `patch "late" version 2 has replaced it`)
	answers(t, p, "add_one", 5, 4005)
	p.Healthy(t)
}

// TestForkedChild: a child has its parent's patches, and from the fork on both
// are patched and reverted each by itself.
func TestForkedChild(t *testing.T) {
	t.Parallel()
	s := testtarget.Spec{Compiler: "g++", Flags: []string{"-O2"}}
	program, p1, p2 := testtarget.Build(t, answerSpec(s)), answerPatchOf(t, s, 1), answerPatchOf(t, s, 2)
	start := func(t *testing.T) (*testtarget.Process, int) {
		p := testtarget.Start(t, program)
		apply(t, p.PID(), p1)
		pid, err := strconv.Atoi(strings.TrimPrefix(p.Ask("fork", "^child [0-9]+$"), "child "))
		if err != nil || pid <= 0 {
			t.Fatalf("no child: %d, %v", pid, err)
		}
		for _, id := range []int{p.PID(), pid} {
			checkList(t, id, map[string]string{"answer@1": "active"})
			verify(t, id)
		}
		answerSays(t, p, 1)
		childSays(t, p, 1)
		return p, pid
	}
	t.Run("child", func(t *testing.T) {
		t.Parallel()
		p, child := start(t)
		parent := testtarget.TextSnapshot(t, p.PID())
		revert(t, child)
		childSays(t, p, 0)
		answerSays(t, p, 1)
		apply(t, child, p2)
		childSays(t, p, 2)
		answerSays(t, p, 1)
		identical(t, parent, p.PID())
		checkList(t, p.PID(), map[string]string{"answer@1": "active"})
		checkList(t, child, map[string]string{"answer@2": "active"})
		revert(t, p.PID())
		answerSays(t, p, 0)
		childSays(t, p, 2)
		verify(t, child)
		p.Healthy(t)
		testtarget.CheckHealthy(t, child)
	})
	t.Run("parent", func(t *testing.T) {
		t.Parallel()
		p, child := start(t)
		before := testtarget.TextSnapshot(t, child)
		apply(t, p.PID(), p2)
		answerSays(t, p, 2)
		childSays(t, p, 1)
		revert(t, p.PID())
		answerSays(t, p, 0)
		childSays(t, p, 1)
		identical(t, before, child)
		apply(t, child, p2)
		revert(t, child, "answer@1")
		childSays(t, p, 2)
		revert(t, child)
		childSays(t, p, 0)
		p.Healthy(t)
		testtarget.CheckHealthy(t, child)
	})
}

// TestListOfTheHost: without a pid, list shows every process that has a patch
// and none that has not.
func TestListOfTheHost(t *testing.T) {
	t.Parallel()
	patch := calcPatch(t, "add_one", 1000, "host", 1)
	patched, other, never := calculator(t), calculator(t), calculator(t)
	apply(t, patched.PID(), patch)
	apply(t, other.PID(), patch)
	revert(t, other.PID())
	apply(t, other.PID(), patch)

	host, r := processesOf(t, "list")
	if r.Exit != 0 {
		t.Fatal(r)
	}
	found := make(map[int]processState)
	for _, s := range host {
		found[s.PID] = s
		if s.Error != "" {
			continue // of another test that damages a ledger
		}
		if len(s.Patches) == 0 {
			t.Errorf("process %d is listed without a patch", s.PID)
		}
		// What is listed must be there; other tests' processes come and go.
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", s.PID))
		if err == nil && len(content) > 0 && !bytes.Contains(content, []byte("hotpatch:")) {
			t.Errorf("process %d is listed and has no patch library", s.PID)
		}
	}
	for _, p := range []*testtarget.Process{patched, other} {
		s, ok := found[p.PID()]
		if !ok || len(s.Patches) != 1 || s.Patches[0].Name != "host" || s.Patches[0].State != "active" || s.Program != "calc" {
			t.Errorf("process %d: listed %v, %+v", p.PID(), ok, s)
		}
	}
	if _, ok := found[never.PID()]; ok {
		t.Errorf("process %d is listed and was never patched", never.PID())
	}
	text := must(t, "list").Stdout
	for _, p := range []*testtarget.Process{patched, other} {
		if !regexp.MustCompile(fmt.Sprintf(`(?m)^\s*%d\s+calc\s+host\s+1\s+active\b`, p.PID())).MatchString(text) {
			t.Errorf("process %d is not in\n%s", p.PID(), text)
		}
	}
	if regexp.MustCompile(fmt.Sprintf(`(?m)^\s*%d\b`, never.PID())).MatchString(text) {
		t.Errorf("process %d is in\n%s", never.PID(), text)
	}
}

// trace makes this process the tracer of the main thread of another one, which
// runs on, until release is called or the test ends.
func trace(t testing.TB, pid int) (release func()) {
	t.Helper()
	ready, done, released := make(chan error), make(chan struct{}), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // what ptrace does belongs to the thread
		defer runtime.UnlockOSThread()
		err := unix.PtraceSeize(pid)
		ready <- err
		if err != nil {
			return
		}
		<-done
		// Only a stopped thread can be let go.
		err = unix.PtraceInterrupt(pid)
		if err == nil {
			_, err = unix.Wait4(pid, nil, unix.WALL, nil)
		}
		if err == nil {
			err = unix.PtraceDetach(pid)
		}
		released <- err
	}()
	if err := <-ready; err != nil {
		t.Fatalf("trace process %d: %v", pid, err)
	}
	release = sync.OnceFunc(func() {
		close(done)
		if err := <-released; err != nil {
			t.Errorf("let go of process %d: %v", pid, err)
		}
	})
	t.Cleanup(release)
	return release
}

// TestListAttachesToNothing: list, verify and symbols work on a process that
// another tracer has, which nobody else can attach to; apply and revert say so.
func TestListAttachesToNothing(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	pid := strconv.Itoa(p.PID())
	patch := calcPatch(t, "add_one", 1000, "traced", 1)
	apply(t, p.PID(), patch)
	release := trace(t, p.PID())
	before := testtarget.TextSnapshot(t, p.PID())
	checkList(t, p.PID(), map[string]string{"traced@1": "active"})
	verify(t, p.PID())
	if r := must(t, "symbols", "--pid", pid, "add_one"); !strings.Contains(r.Stdout, "add_one") {
		t.Error(r)
	}
	refused(t, 5, "already-traced", "apply", "--pid", pid, calcPatch(t, "add_one", 2000, "traced", 2))
	refused(t, 5, "already-traced", "revert", "--pid", pid, "traced")
	identical(t, before, p.PID())
	answers(t, p, "add_one", 5, 1005)
	release()
	revert(t, p.PID())
	answers(t, p, "add_one", 5, 6)
	p.Healthy(t)
}

// TestForeignWrites: a site that somebody else has overwritten is found by
// verify, and apply and revert do not touch it nor anything else.
func TestForeignWrites(t *testing.T) {
	t.Parallel()
	c := seedCase{"g++", "-O2", true, false, 1}
	program, p1, p2 := c.program(t), c.patch(t, 1), c.patch(t, 2)
	for _, kind := range []string{"entry", "slot-word", "vtable"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			// It sleeps most of the time, and calls what is damaged only after
			// the damage is repaired.
			p := testtarget.Start(t, program, testtarget.Args("-q", "1", "600000"))
			pid := strconv.Itoa(p.PID())
			original := testtarget.TextSnapshot(t, p.PID())
			sites := applySites(t, p.PID(), p1)
			var at uint64
			switch kind {
			case "slot-word":
				at = islandWord(t, p.PID(), sites["entry"][0])
			default:
				if len(sites[kind]) == 0 {
					t.Fatalf("the patch has no site of kind %s: %v", kind, sites)
				}
				at = sites[kind][0]
			}
			verify(t, p.PID())
			good := peek(t, p.PID(), at, 4)
			poke(t, p.PID(), at, []byte{good[0] ^ 0xff, good[1] ^ 0x0f})
			damaged := testtarget.TextSnapshot(t, p.PID())

			found, r := processesOf(t, "verify", "--pid", pid)
			if r.Exit != 6 || len(found) != 1 {
				t.Fatalf("verify should exit with 6 and show the process\n%v", r)
			}
			if d := found[0].Differences; len(d) != 1 || d[0].Kind != kind || d[0].Address != fmt.Sprintf("%#x", at) || d[0].Want == d[0].Have {
				t.Errorf("differences %+v, want one of kind %s at %#x", d, kind, at)
			}
			if r := testtarget.Run(t, "verify", "--pid", pid); r.Exit != 6 || !strings.Contains(r.Stdout+r.Stderr, fmt.Sprintf("%#x", at)) {
				t.Errorf("verify should exit with 6 and name the address %#x\n%v", at, r)
			}
			checkList(t, p.PID(), map[string]string{"seed@1": "altered"})
			refused(t, 6, "memory-differs", "revert", "--pid", pid, "--all")
			refused(t, 6, "memory-differs", "apply", "--pid", pid, p2)
			identical(t, damaged, p.PID())

			poke(t, p.PID(), at, good)
			verify(t, p.PID())
			seedAwake(t, p, 1)
			revert(t, p.PID())
			seedAwake(t, p, 0)
			unchanged(t, original, p.PID())
			p.Healthy(t)
		})
	}
	t.Run("before", func(t *testing.T) {
		t.Parallel()
		p := calculator(t)
		at := listedAddress(t, p.PID(), "add_one")
		good := peek(t, p.PID(), at, 1)
		poke(t, p.PID(), at, []byte{0xcc}) // as a debugger does
		before := testtarget.TextSnapshot(t, p.PID())
		refused(t, 6, "memory-differs", "apply", "--pid", strconv.Itoa(p.PID()), calcPatch(t, "add_one", 1000, "", 0))
		identical(t, before, p.PID())
		poke(t, p.PID(), at, good)
		answers(t, p, "add_one", 5, 6)
		p.Healthy(t)
	})
}

// seedAwake has the seed program's main thread, which sleeps, call everything.
func seedAwake(t testing.TB, p *testtarget.Process, version int) {
	t.Helper()
	p.Send("?") // ends its sleep; the next round begins
	seedSays(t, p, version, 1)
}

// TestDamagedLedger: a ledger that something has written over is said to be so,
// by every command, and nothing is changed.
func TestDamagedLedger(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, pid int, root uint64)
	}{
		{"magic", func(t *testing.T, pid int, root uint64) { flip(t, pid, root+3) }},
		{"root", func(t *testing.T, pid int, root uint64) { flip(t, pid, root+2000) }},
		{"headers", func(t *testing.T, pid int, root uint64) { flip(t, pid, root+64+8); flip(t, pid, root+128+8) }},
		{"body", func(t *testing.T, pid int, root uint64) {
			addr, size, _ := ledgerHeader(t, pid, root)
			flip(t, pid, addr+size/2)
		}},
		{"commit", func(t *testing.T, pid int, root uint64) { flip(t, pid, root+192+4) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := calculator(t)
			pid := strconv.Itoa(p.PID())
			apply(t, p.PID(), calcPatch(t, "add_one", 1000, "damage", 1))
			c.damage(t, p.PID(), ledgerRoot(t, p.PID()))
			before := testtarget.TextSnapshot(t, p.PID())
			next := calcPatch(t, "add_one", 2000, "damage", 2)
			for _, args := range [][]string{
				{"list", "--pid", pid}, {"verify", "--pid", pid}, {"revert", "--pid", pid, "--all"},
				{"apply", "--pid", pid, next}, {"apply", "--dry-run", "--pid", pid, next},
			} {
				refused(t, 6, "ledger-damaged", args...)
			}
			identical(t, before, p.PID())
			answers(t, p, "add_one", 5, 1005)
			p.Healthy(t)

			// The host's list names it and does not stop there.
			host, _ := processesOf(t, "list")
			if !slices.ContainsFunc(host, func(s processState) bool { return s.PID == p.PID() && s.Error != "" }) {
				t.Errorf("process %d is not among %+v", p.PID(), host)
			}
		})
	}
	// A header that was not written to its end is what a killed hotpatch leaves:
	// the one before is in force, and says the same.
	t.Run("torn", func(t *testing.T) {
		t.Parallel()
		p := calculator(t)
		original := testtarget.TextSnapshot(t, p.PID())
		apply(t, p.PID(), calcPatch(t, "add_one", 1000, "damage", 1))
		root := ledgerRoot(t, p.PID())
		_, _, header := ledgerHeader(t, p.PID(), root)
		flip(t, p.PID(), header)
		checkList(t, p.PID(), map[string]string{"damage@1": "active"})
		verify(t, p.PID())
		apply(t, p.PID(), calcPatch(t, "add_one", 2000, "damage", 2))
		answers(t, p, "add_one", 5, 2005)
		revert(t, p.PID())
		answers(t, p, "add_one", 5, 6)
		unchanged(t, original, p.PID())
	})
}

// ledgerRoot finds the ledger's root page: it begins with "hotpatch" and is in
// anonymous memory that can be executed.
func ledgerRoot(t testing.TB, pid int) uint64 {
	t.Helper()
	for _, line := range mapsOf(t, pid, " r-xp 00000000 00:00 0") {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		for at := from; at < to && !strings.Contains(line, "["); at += 4096 {
			if string(peek(t, pid, at, 8)) == "hotpatch" {
				return at
			}
		}
	}
	t.Fatalf("process %d has no ledger", pid)
	return 0
}

// ledgerHeader gives where the body in force is, how long it is, and where the
// header that says so is.
func ledgerHeader(t testing.TB, pid int, root uint64) (addr, size, header uint64) {
	t.Helper()
	var newest uint64
	for _, at := range []uint64{root + 64, root + 128} {
		b := peek(t, pid, at, 24)
		if g := binary.LittleEndian.Uint64(b[16:]); g > newest {
			newest, header = g, at
			addr, size = binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		}
	}
	if newest == 0 {
		t.Fatalf("the ledger of process %d is empty", pid)
	}
	return addr, size, header
}

func flip(t testing.TB, pid int, addr uint64) {
	t.Helper()
	poke(t, pid, addr, []byte{peek(t, pid, addr, 1)[0] ^ 0x10})
}

// TestReapplyUsesTheMappedLibrary: what was reverted stays mapped, and is used
// again.
func TestReapplyUsesTheMappedLibrary(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	patch := calcPatch(t, "add_one", 1000, "again", 1)
	apply(t, p.PID(), patch)
	where := mapsOf(t, p.PID(), "hotpatch:again")
	if len(where) == 0 {
		t.Fatal("no patch library is mapped")
	}
	revert(t, p.PID())
	apply(t, p.PID(), patch)
	answers(t, p, "add_one", 5, 1005)
	if now := mapsOf(t, p.PID(), "hotpatch:again"); !slices.Equal(now, where) {
		t.Errorf("mapped at first\n%s\nand then\n%s", strings.Join(where, "\n"), strings.Join(now, "\n"))
	}
}

// TestManyRounds: patching and reverting over and over leaves the process with
// what it had after the first time. Each round's patch is the same file.
func TestManyRounds(t *testing.T) {
	lengthy(t)
	t.Parallel()
	const rounds = 60
	c := seedCase{"g++", "-O2", true, false, 4}
	p := testtarget.Start(t, c.program(t), testtarget.Args("-q", "4", "1"))
	original := testtarget.TextSnapshot(t, p.PID())
	p1, p2 := c.patch(t, 1), c.patch(t, 2)
	round := func() {
		apply(t, p.PID(), p1, p2)
		seedSays(t, p, 2, 4)
		revert(t, p.PID())
	}
	round()
	seedSays(t, p, 0, 4)
	first := resourcesOf(t, p.PID())
	for range rounds {
		round()
	}
	seedSays(t, p, 0, 4)
	if last := resourcesOf(t, p.PID()); last != first {
		t.Errorf("after the first round %+v, after %d more %+v", first, rounds, last)
	}
	unchanged(t, original, p.PID())
	p.Healthy(t)
	seedClean(t, p)
}
