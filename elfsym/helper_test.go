package elfsym

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
)

// files writes source files into a new directory.
func files(t testing.TB, sources map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range sources {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run runs a tool in a directory; args is split at spaces.
func run(t testing.TB, dir, args string) string {
	t.Helper()
	f := strings.Fields(args)
	cmd := exec.Command(f[0], f[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", args, err, out)
	}
	return string(out)
}

// needs skips a test if a tool is not installed.
func needs(t testing.TB, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Skipf("%s is not installed: %v", tool, err)
	}
}

// live starts a program that the test owns, waits until it prints a line, and
// opens it. Every program here prints one when it is ready and then waits.
func live(t testing.TB, dir string, argv ...string) *procfs.Proc {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var pid int
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v ended early: %v", argv, err)
	}
	// A program can say which process it is, if it is not the one started.
	if n, _ := fmt.Sscanf(line, "READY %d", &pid); n == 0 {
		pid = cmd.Process.Pid
	}
	p, err := procfs.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// space reads the modules of a process.
func space(t testing.TB, p *procfs.Proc, debugDirs ...string) *Space {
	t.Helper()
	s, err := Read(p, debugDirs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// liveSpace does both.
func liveSpace(t testing.TB, dir string, argv ...string) *Space {
	t.Helper()
	return space(t, live(t, dir, argv...))
}

func memory(t testing.TB, s *Space) *procfs.Mem {
	t.Helper()
	mem, err := s.proc.Mem(false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return mem
}

func query(t testing.TB, s string) Query {
	t.Helper()
	q, err := ParseQuery(s)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// one finds exactly one symbol.
func one(t testing.TB, s *Space, q string) Symbol {
	t.Helper()
	sym, err := s.One(query(t, q), nil)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return sym
}

func wantCode(t testing.TB, err error, code string) *fault.Error {
	t.Helper()
	if fault.CodeOf(err) != code {
		t.Fatalf("got %v (code %q), want code %q", err, fault.CodeOf(err), code)
	}
	e, _ := err.(*fault.Error)
	return e
}

// module finds a module by name.
func module(t testing.TB, s *Space, name string) *Module {
	t.Helper()
	for _, m := range s.Modules {
		if m.matches(name) {
			return m
		}
	}
	t.Fatalf("no module %s in %v", name, names(s))
	return nil
}

func names(s *Space) []string {
	var list []string
	for _, m := range s.Modules {
		list = append(list, m.Name)
	}
	return list
}

// ready is the end of every C test program.
const ready = `
#include <stdio.h>
#include <unistd.h>
static void ready(void) { printf("READY %d\n", (int)getpid()); fflush(stdout); for (;;) pause(); }
`

// symbolsOf gives what nm knows: addresses by name, of one kind of symbols.
func nmSymbols(t testing.TB, dir, args string) map[string][]uint64 {
	t.Helper()
	found := map[string][]uint64{}
	for line := range strings.Lines(run(t, dir, "nm "+args)) {
		f := strings.Fields(line)
		var addr uint64
		if len(f) != 3 {
			continue
		}
		if _, err := fmt.Sscanf(f[0], "%x", &addr); err != nil {
			t.Fatalf("nm: %q", line)
		}
		if strings.Contains("tTwWiuVvdDbBrR", f[1]) {
			name, _, _ := strings.Cut(f[2], "@")
			found[name] = append(found[name], addr)
		}
	}
	return found
}
