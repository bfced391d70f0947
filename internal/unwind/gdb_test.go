package unwind

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// gdbFrames is what gdb says of one thread.
type gdbFrames struct {
	pcs []uint64
	end string // why it found no more
}

// askGDB gives the backtraces of all threads of a process.
func askGDB(t testing.TB, pid int) map[int]*gdbFrames {
	t.Helper()
	testtarget.Need(t, "gdb")
	script, err := filepath.Abs("testdata/frames.py")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off",
		"-ex", "set backtrace past-main on", "-ex", "set backtrace past-entry on", "-ex", "set print thread-events off",
		"-ex", fmt.Sprintf("attach %d", pid), "-ex", "source "+script, "-ex", "detach")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("gdb: %v\n%s", err, out)
	}
	list := map[int]*gdbFrames{}
	var now *gdbFrames
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var tid, kind int
		var pc uint64
		line := lines.Text()
		if n, _ := fmt.Sscanf(line, "thread %d", &tid); n == 1 {
			now = &gdbFrames{}
			list[tid] = now
		} else if n, _ := fmt.Sscanf(line, "frame 0x%x %d", &pc, &kind); n == 2 && now != nil {
			now.pcs = append(now.pcs, pc)
		} else if why, ok := strings.CutPrefix(line, "end "); ok && now != nil {
			now.end = why
		}
	}
	if len(list) == 0 {
		t.Fatalf("gdb tells of no threads:\n%s", out)
	}
	return list
}

// tally counts samples. more counts complete walks where gdb knows more frames,
// which must never be.
type tally struct{ samples, complete, frames, differ, more int }

func (n *tally) add(m tally) {
	n.samples += m.samples
	n.complete += m.complete
	n.frames += m.frames
	n.differ += m.differ
	n.more += m.more
}

// compare samples a process, rounds times: it is stopped by job control, so that
// gdb sees what we saw. Every frame of ours must be one of gdb's; a complete walk must have
// as many.
func (x *target) compare(t testing.TB, rounds int) (n tally) {
	t.Helper()
	for range rounds {
		halt(t, x.proc)
		ours := x.walks(t)
		theirs := askGDB(t, x.pid)
		resume(t, x.proc)
		if len(ours) != len(theirs) {
			t.Errorf("process %d: %d threads, gdb sees %d", x.pid, len(ours), len(theirs))
		}
		for tid, w := range ours {
			g := theirs[tid]
			if g == nil {
				t.Errorf("gdb does not know thread %d", tid)
				continue
			}
			n.samples++
			n.frames += len(w.Frames)
			if w.Complete {
				n.complete++
			} else {
				t.Logf("thread %d: %s", tid, w.Why)
			}
			if w.Complete && len(g.pcs) > len(w.Frames) {
				n.more++
			}
			if why := differs(&w, g); why != "" {
				n.differ++
				t.Errorf("thread %d: %s\nours: %s\ngdb: %x %s", tid, why, chain(&w), g.pcs, g.end)
			}
		}
		time.Sleep(20 * time.Millisecond) // lets it do something else
	}
	return n
}

func differs(w *Walk, g *gdbFrames) string {
	if w.Complete && len(g.pcs) > len(w.Frames) {
		return "complete, but gdb knows more frames"
	}
	if len(w.Frames) > len(g.pcs) {
		return "gdb knows fewer frames"
	}
	for i := range w.Frames {
		if w.Frames[i].PC != g.pcs[i] {
			return fmt.Sprintf("frame %d is another one", i)
		}
	}
	return ""
}

// TestAgainstGDBThreads compares the threads of a program whose stacks are as
// difficult as compilers make them.
func TestAgainstGDBThreads(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		spec testtarget.Spec
	}{
		{"gcc -O2", testtarget.Spec{Flags: []string{"-O2"}, Compiler: "g++"}},
		{"gcc -O2 stripped -fomit-frame-pointer", testtarget.Spec{Flags: []string{"-O2", "-fomit-frame-pointer"}, Strip: true, Compiler: "g++"}},
		{"gcc -O0", testtarget.Spec{Flags: []string{"-O0"}, Compiler: "g++"}},
		{"clang -O2", testtarget.Spec{Flags: []string{"-O2"}, Compiler: "clang++"}},
		{"gcc -O3 no-pie lazy", testtarget.Spec{Flags: []string{"-O3", "-no-pie", "-fno-pie", "-Wl,-z,lazy"}, Compiler: "g++"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && c.name != "gcc -O2" {
				t.Skip("one compiler is enough with -short")
			}
			c.spec.Files = source(t, "many.cc")
			p := testtarget.Start(t, testtarget.Build(t, c.spec), testtarget.Args("64"))
			x := open(t, p.PID())
			if list := x.u.Prepare(); len(list) > 0 {
				t.Fatal(list)
			}
			rounds := 4
			if testing.Short() {
				rounds = 1
			}
			n := x.compare(t, rounds)
			t.Logf("%d samples, %d complete, %d frames", n.samples, n.complete, n.frames)
			if n.samples < 65*rounds {
				t.Errorf("only %d samples", n.samples)
			}
			// A thread can be at the instructions that deliver an exception, or
			// at one of the few of libc that have no unwind information.
			if n.complete*100 < n.samples*90 {
				t.Errorf("only %d of %d walks are complete", n.complete, n.samples)
			}
		})
	}
}
