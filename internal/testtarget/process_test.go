package testtarget

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// orphanMaker, set in the environment, makes this test binary start a target
// and end without stopping it.
const orphanMaker = "HOTPATCH_TEST_ORPHAN"

func TestMain(m *testing.M) {
	if path := os.Getenv(orphanMaker); path != "" {
		var t orphanTB
		fmt.Println(Start(&t, path).PID())
		os.Exit(0) // no cleanup runs
	}
	os.Exit(m.Run())
}

// orphanTB is the little that Start needs of a test, and never cleans up.
type orphanTB struct{ testing.TB }

func (*orphanTB) Helper()                   {}
func (*orphanTB) Cleanup(func())            {}
func (*orphanTB) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

func calculator(t testing.TB) string {
	t.Helper()
	return Build(t, Spec{Sources: calcSources, Flags: []string{"-O1"}})
}

// TestPdeathsig: a test binary that dies takes its targets with it.
func TestPdeathsig(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), orphanMaker+"="+calculator(t))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(Timeout)
	for alive(pid) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("process %d outlives the test binary that started it", pid)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// alive reports whether a process runs, that is, is there and no zombie: an
// orphan's zombie may wait a long time for somebody to reap it.
func alive(pid int) bool {
	fields, err := status(fmt.Sprintf("/proc/%d", pid))
	return err == nil && !strings.HasPrefix(fields["State"], "Z")
}

func TestStop(t *testing.T) {
	t.Parallel()
	p := Start(t, "/bin/sh", Args("-c", "sleep 1000 & echo $!; echo READY; wait"))
	child, err := strconv.Atoi(p.Lines()[0])
	if err != nil {
		t.Fatal(err)
	}
	if p.Exited(0) {
		t.Error("it is said to have ended")
	}
	if got := p.Stop(); got.Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v", got)
	}
	p.Stop() // again
	for deadline := time.Now().Add(Timeout); alive(child); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("its child %d still runs", child)
		}
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	p := Start(t, "/bin/sh", Args("-c", "echo READY; read line; exit 7"))
	p.Send("go on")
	if got := p.Wait(Timeout); got.ExitStatus() != 7 {
		t.Errorf("exit status %d, want 7", got.ExitStatus())
	}
}

func TestNextLine(t *testing.T) {
	t.Parallel()
	p := Start(t, "/bin/sh", Args("-c", `echo READY; echo first 1; echo second 2; echo "$GREETING"; pwd; cat`),
		Env("GREETING=third 3"), Dir("/usr"))
	for _, want := range []string{"second 2", "third 3", "/usr"} {
		match, _, _ := strings.Cut(want, " ")
		if got := p.Line("^"+match, Timeout); got != want {
			t.Errorf("line %q, want %q", got, want)
		}
	}
	p.Send("echo 1")
	if got := p.Ask("echo 2", "^echo"); got != "echo 1" && got != "echo 2" {
		t.Errorf("answer %q", got)
	}
	// Another thread's line may come before an answer, or between two.
	other := p.Expect("^other")
	p.Send("other 1")
	p.Send("other 2")
	p.Ask("answer", "^answer$")
	p.Ask("again", "^again$")
	for _, want := range []string{"other 1", "other 2"} {
		if got := other(); got != want {
			t.Errorf("line %q, want %q", got, want)
		}
	}
	p.CloseInput()
	if !p.Exited(Timeout) {
		t.Error("cat goes on without input")
	}
	if want := "READY,first 1,second 2"; !strings.HasPrefix(strings.Join(p.Lines(), ","), want) {
		t.Errorf("lines %q", p.Lines())
	}
}

func TestHealthy(t *testing.T) {
	t.Parallel()
	p := Start(t, calculator(t))
	p.Healthy(t)
	CheckHealthy(t, p.PID())
	if err := syscall.Kill(p.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The signal may take a moment to arrive; then it must not look like health.
	for deadline := time.Now().Add(Timeout); health(p.PID()) == nil && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if err := settled(p.PID()); err == nil || !strings.Contains(err.Error(), "state") {
		t.Errorf("a stopped process: %v", err)
	}
	if err := syscall.Kill(p.PID(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.Healthy(t)
	if err := syscall.Kill(p.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !p.Exited(Timeout) {
		t.Fatal("it survives SIGKILL")
	}
	if err := settled(p.PID()); err == nil {
		t.Error("a killed process is said to be healthy")
	}
}

func TestTracedIsNotHealthy(t *testing.T) {
	t.Parallel()
	Need(t, "gdb")
	p := Start(t, calculator(t))
	gdb := Start(t, "gdb", Args("-q", "-nx", "-p", strconv.Itoa(p.PID())), Unready())
	gdb.Ask(`printf "attached %d\n", 1`, "attached 1")
	if err := settled(p.PID()); err == nil {
		t.Error("a traced process is said to be healthy")
	}
	gdb.Ask("detach", "detached")
	p.Healthy(t)
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	p := Start(t, calculator(t))
	text, full := TextSnapshot(t, p.PID()), FullSnapshot(t, p.PID())
	if len(text) < 5 || len(full) <= len(text) {
		t.Fatalf("%d mappings that cannot be written, %d in all", len(text), len(full))
	}
	// It may still be on its way to sleep.
	diff := Diff(full, FullSnapshot(t, p.PID()))
	for i := 0; i < 20 && diff != nil; i++ {
		time.Sleep(20 * time.Millisecond)
		full = FullSnapshot(t, p.PID())
		diff = Diff(full, FullSnapshot(t, p.PID()))
	}
	if diff != nil {
		t.Errorf("a sleeping process has changed: %q", diff)
	}
	if got := p.Ask("call count 1", "="); got != "count(1) = 6004" {
		t.Error(got)
	}
	if diff := Diff(text, TextSnapshot(t, p.PID())); diff != nil {
		t.Errorf("text has changed: %q", diff)
	}
	if diff := Diff(full, FullSnapshot(t, p.PID())); len(diff) == 0 {
		t.Error("a changed variable is not noticed")
	}

	// One byte of the C library's code.
	var address int64
	for name := range text {
		if strings.Contains(name, "r-xp") && strings.Contains(name, "libc") {
			start, _, _ := strings.Cut(name, "-")
			at, err := strconv.ParseInt(start, 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			address = at
		}
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", p.PID()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	var b [1]byte
	if _, err := mem.ReadAt(b[:], address); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := mem.WriteAt(b[:], address); err != nil {
		t.Fatal(err)
	}
	diff = Diff(text, TextSnapshot(t, p.PID()))
	if len(diff) != 1 || !strings.Contains(diff[0], "changed") || !strings.Contains(diff[0], "libc") {
		t.Errorf("one changed byte: %q", diff)
	}
	if diff := Diff(text, nil); len(diff) != len(text) || !strings.HasPrefix(diff[0], "removed") {
		t.Errorf("all removed: %q", diff)
	}
	if diff := Diff(nil, text); len(diff) != len(text) || !strings.HasPrefix(diff[0], "added") {
		t.Errorf("all added: %q", diff)
	}
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	NeedRoot(t)
	p := Start(t, calculator(t), Namespaces(unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWUSER), Setsid())
	if p.Lines()[0] != "READY 1" {
		t.Errorf("in its namespace it is not process 1: %q", p.Lines())
	}
	for _, kind := range []string{"pid", "mnt", "user"} {
		inside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), kind))
		if err != nil {
			t.Fatal(err)
		}
		outside, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if inside == outside {
			t.Errorf("it is in the test's %s namespace", kind)
		}
	}
	p.Healthy(t)
}

func TestStrict(t *testing.T) {
	for _, test := range []struct {
		ci, all string
		want    bool
	}{{"", "", false}, {"true", "", true}, {"", "1", true}, {"", "0", false}} {
		t.Setenv("CI", test.ci)
		t.Setenv("HOTPATCH_TEST_ALL", test.all)
		if got := Strict(); got != test.want {
			t.Errorf("CI=%q HOTPATCH_TEST_ALL=%q: %v", test.ci, test.all, got)
		}
	}
}

func TestRoot(t *testing.T) {
	if _, err := os.Stat(filepath.Join(Root(t), "testdata", "targets", "seed.cc")); err != nil {
		t.Error(err)
	}
}
