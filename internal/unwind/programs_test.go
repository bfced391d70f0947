package unwind

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
)

// program is a stock program that is sampled.
type program struct {
	name  string
	tool  string // what must be installed
	short bool   // also with -short
	start func(t *testing.T) []int
}

// running starts a command that keeps running.
func running(tool string, args ...string) func(t *testing.T) []int {
	return func(t *testing.T) []int {
		p := testtarget.Start(t, look(t, tool), testtarget.Args(args...), testtarget.Unready())
		return []int{p.PID()}
	}
}

func look(t *testing.T, tool string) string {
	t.Helper()
	testtarget.Need(t, tool)
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var programs = []program{
	{name: "bash", tool: "bash", short: true, start: running("bash", "-c", "f() { local i; for i in 1 2 3; do [ $1 = 0 ] || f $(($1-1)); done; }; while :; do f 5; done")},
	{name: "bash waiting", tool: "bash", start: running("bash", "-c", "read line; echo")},
	{name: "python3", tool: "python3", start: startPython},
	{name: "perl", tool: "perl", start: running("perl", "-e", "while (1) { @x = sort { $b <=> $a } map { s/(\\d)/<$1>/r; length } 1..500 }")},
	{name: "sqlite3", tool: "sqlite3", start: running("sqlite3", ":memory:", "with recursive r(i) as (select 1 union all select i+1 from r) select count(*) from r where i % 7 = length(hex(i))")},
	{name: "node", tool: "node", start: running("node", "-e", nodeBusy)},
	{name: "redis-server", tool: "redis-server", start: startRedis},
	{name: "mariadbd", tool: "mariadbd", start: startMariaDB},
	{name: "postgres", tool: "initdb", start: startPostgres},
}

const pythonBusy = `
import threading, re, json
def f(n): return n if n < 2 else f(n-1) + f(n-2)
def work():
    while True:
        f(12); re.sub("(a|b)+", lambda m: m.group(1), "abab" * 50); json.loads("[1, 2, {}]"); sorted(range(50), key=lambda x: -x)
for _ in range(3): threading.Thread(target=work, daemon=True).start()
work()
`

// The workers are busy in the hand-written assembly of the cryptography.
const nodeBusy = `
const crypto = require("crypto");
function go() { crypto.pbkdf2("word", "salt", 20000, 64, "sha512", go); }
for (let i = 0; i < 4; i++) go();
`

// TestAgainstGDBPrograms compares the threads of programs from the distribution,
// most of them stripped, while they work. With HOTPATCH_TEST_LONG=1 it takes many
// more samples: scripts/unwind-samples runs that, and reads what is logged.
func TestAgainstGDBPrograms(t *testing.T) {
	t.Parallel()
	for _, c := range programs {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && !c.short {
				t.Skip("one program is enough with -short")
			}
			testtarget.Need(t, c.tool)
			rounds := 2
			switch {
			case os.Getenv("HOTPATCH_TEST_LONG") == "1":
				rounds = 30
			case testing.Short():
				rounds = 1
			}
			var processes []*target
			for _, pid := range c.start(t) {
				x := settled(t, pid)
				for _, e := range x.u.Prepare() {
					t.Log(e)
				}
				processes = append(processes, x)
			}
			total := tally{}
			for range rounds {
				for _, x := range processes {
					total.add(x.compare(t, 1))
				}
			}
			t.Logf("%s, %s: %d samples, %d frames, %d complete walks, %d differences, %d complete where gdb knows more", c.name,
				symbols(t, processes[0].pid), total.samples, total.frames, total.complete, total.differ, total.more)
			if total.samples == 0 || total.complete*100 < total.samples*80 {
				t.Errorf("only %d of %d walks are complete", total.complete, total.samples)
			}
		})
	}
}

// symbols says whether a process's program has a symbol table.
func symbols(t *testing.T, pid int) string {
	t.Helper()
	f, err := elf.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.SectionByType(elf.SHT_SYMTAB) == nil {
		return "stripped"
	}
	return "with symbols"
}

// settled opens a process once it has stopped loading libraries and starting threads.
func settled(t *testing.T, pid int) *target {
	t.Helper()
	p, err := procfs.Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	last := -1
	for range 200 {
		maps, err := p.Maps()
		if err != nil {
			t.Fatal(err)
		}
		tids, err := p.Tasks()
		if err != nil {
			t.Fatal(err)
		}
		n := len(tids) << 16
		for _, m := range maps {
			if m.Perm&procfs.Exec != 0 {
				n++
			}
		}
		if n == last {
			return open(t, pid)
		}
		last = n
		time.Sleep(500 * time.Millisecond)
	}
	t.Fatalf("process %d does not settle", pid)
	return nil
}

// shortDir gives a directory whose path is short enough for sockets, and which
// the user nobody can use.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "uw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startPython starts the interpreter itself, where python3 is a script that finds it.
func startPython(t *testing.T) []int {
	out, err := exec.Command(look(t, "python3"), "-c", "import sys; print(sys.executable)").Output()
	if err != nil {
		t.Fatal(err)
	}
	return running(strings.TrimSpace(string(out)), "-c", pythonBusy)(t)
}

// waitFor waits until a file is there.
func waitFor(t *testing.T, name string) {
	t.Helper()
	for deadline := time.Now().Add(2 * testtarget.Timeout); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(name); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not appear", name)
		}
	}
}

func startRedis(t *testing.T) []int {
	testtarget.Need(t, "redis-benchmark")
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	p := testtarget.Start(t, look(t, "redis-server"), testtarget.Unready(), testtarget.Dir(dir),
		testtarget.Args("--port", "0", "--unixsocket", socket, "--save", "", "--dir", dir))
	waitFor(t, socket)
	testtarget.Start(t, look(t, "redis-benchmark"), testtarget.Unready(),
		testtarget.Args("-s", socket, "-l", "-q", "-t", "set,get,lpush,lrange,zadd"))
	return []int{p.PID()}
}

func startMariaDB(t *testing.T) []int {
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	user := testtarget.Args("--no-defaults", "--user=root", "--skip-grant-tables", "--skip-networking", "--datadir="+dir, "--socket="+socket)
	p := testtarget.Start(t, look(t, "mariadbd"), testtarget.Unready(), testtarget.Dir(dir), user)
	waitFor(t, socket)
	if client, err := exec.LookPath("mariadb"); err == nil {
		testtarget.Start(t, client, testtarget.Unready(), testtarget.Args("--no-defaults", "--socket="+socket,
			"-e", "select benchmark(100000000000, sha2(concat(rand(), 'x'), 256))"))
	}
	return []int{p.PID()}
}

// startPostgres starts a server, which refuses to run as root, and gives some of
// its processes.
func startPostgres(t *testing.T) []int {
	testtarget.NeedRoot(t)
	dir := shortDir(t)
	const nobody = 65534
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	as := func(a *syscall.SysProcAttr) { a.Credential = &syscall.Credential{Uid: nobody, Gid: nobody} }
	data := filepath.Join(dir, "d")
	initdb := exec.Command(look(t, "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-N")
	initdb.Dir = dir
	initdb.SysProcAttr = &syscall.SysProcAttr{}
	as(initdb.SysProcAttr)
	if out, err := initdb.CombinedOutput(); err != nil {
		testtarget.Unavailable(t, "initdb: %v\n%s", err, out)
	}
	bin, err := filepath.EvalSymlinks(initdb.Path)
	if err != nil {
		t.Fatal(err)
	}
	p := testtarget.Start(t, filepath.Join(filepath.Dir(bin), "postgres"), testtarget.Unready(), testtarget.Attr(as), testtarget.Dir(dir),
		testtarget.Args("-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "jit=off"))
	t.Cleanup(func() { // while it lives, it ends its children; they outlive it if it is killed
		_ = syscall.Kill(p.PID(), syscall.SIGQUIT)
		if !p.Exited(testtarget.Timeout) {
			t.Error("postgres does not end")
		}
	})
	waitFor(t, filepath.Join(dir, ".s.PGSQL.5432"))
	if psql, err := exec.LookPath("psql"); err == nil {
		testtarget.Start(t, psql, testtarget.Unready(), testtarget.Args("-h", dir, "-U", "postgres", "-c",
			"select count(md5(a::text || b::text)) from generate_series(1, 100000) a, generate_series(1, 100000) b"))
	}
	time.Sleep(time.Second)
	pids := []int{p.PID()}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID()), "task", strconv.Itoa(p.PID()), "children"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if len(pids) < 4 {
		t.Fatalf("processes of the server: %v", pids)
	}
	// The server, a worker, and the one that executes the query.
	return []int{pids[0], pids[1], pids[len(pids)-1]}
}
