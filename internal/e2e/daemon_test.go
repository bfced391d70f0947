package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"hotpatch/internal/testtarget"
)

// The daemons are those of Debian's packages: stripped, so that only .dynsym has
// their functions, and not prepared for anything. Each test patches one under
// load, looks at every answer, and takes the patch out again.

// served is a daemon with a patch for it, a load, and clients that look at every
// answer.
type served struct {
	d         *daemon
	patch     string // its name, too, and the functions that it replaces
	name      string
	functions []string
	load      *loading
	watches   []*watched
}

// TestRedis patches what answers PING, and what prints integers.
func TestRedis(t *testing.T) {
	lengthy(t)
	t.Parallel()
	s := redis(t)
	s.d.patchUnderLoad(t, s.patch, s.name, s.functions, s.load, s.watches...)
	noErrorsOfRedis(t, s)
}

// redis starts a server of one thread with an event loop.
func redis(t *testing.T) *served {
	t.Helper()
	for _, tool := range []string{"redis-server", "redis-benchmark", "redis-cli"} {
		testtarget.Need(t, tool)
	}
	patch := patchOf(t, "redis.c", `#include "hotpatch.h"
#include <stddef.h>
#include <stdio.h>
HOTPATCH_NAME("redis-answers", 1)
struct client;
void addReplyProto(struct client *c, const char *s, size_t len);
unsigned long calls;
void pingCommand(struct client *c);
void pingCommand(struct client *c) {
	__atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
	addReplyProto(c, "+PATCHED\r\n", 10);
}
void addReplyLongLong(struct client *c, long long n);
void addReplyLongLong(struct client *c, long long n) {
	char line[40];
	addReplyProto(c, line, (size_t)snprintf(line, sizeof line, ":%lld\r\n", n + 1000));
}
`)
	port := freePort(t)
	d := startDaemon(t, daemonSpec{
		path: lookPath(t, "redis-server"), dir: t.TempDir(), ready: "Ready to accept connections", stop: syscall.SIGTERM,
		args: []string{"--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no"},
	})
	d.port = port
	run(t, "redis-cli", "-p", port, "set", "word", "hello")
	ping := watch(t, dial(t, port), "PING", "+PONG", "+PATCHED")
	length := watch(t, dial(t, port), "STRLEN word", ":5", ":1005")
	// It ends at the first answer that is an error.
	load := startLoad(t, func(out string) bool {
		return strings.Count(out, " requests per second") == 6 && !strings.Contains(out, "Error")
	},
		"redis-benchmark", "-p", port, "-c", "16", "-n", "5000", "-q", "-t", "ping,set,get,lpush,sadd")
	return &served{d, patch, "redis-answers", []string{"pingCommand", "addReplyLongLong"}, load, []*watched{ping, length}}
}

// noErrorsOfRedis asks the server whether it has answered anything with an error.
func noErrorsOfRedis(t *testing.T, s *served) {
	t.Helper()
	stats := run(t, "redis-cli", "-p", s.d.port, "info", "stats")
	for _, none := range []string{"total_error_replies:0", "rejected_connections:0", "unexpected_error_replies:0"} {
		if !strings.Contains(stats, none+"\r\n") {
			t.Errorf("the server should say %s:\n%s", none, stats)
		}
	}
}

// TestMariaDB patches a virtual function of a C++ program with dozens of
// threads.
func TestMariaDB(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("the short tests patch redis only")
	}
	s := mariadb(t)
	s.d.patchUnderLoad(t, s.patch, s.name, s.functions, s.load, s.watches...)
}

// mariadb starts a server in C++ with a thread for each client.
func mariadb(t *testing.T) *served {
	t.Helper()
	testtarget.NeedRoot(t) // to be the daemon's user
	for _, tool := range []string{"mariadbd", "mariadb", "mariadb-slap"} {
		testtarget.Need(t, tool)
	}
	patch := patchOf(t, "mariadb.cc", `#include "hotpatch.h"
HOTPATCH_NAME("mariadb-ascii", 1)
unsigned long calls;
struct Item_func_ascii {
	long long val_int();
};
long long Item_func_ascii::val_int() {
	__atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
	return 4242;
}
`)
	dir, mysql := publicDir(t), credential(t, "mysql")
	own(t, dir, mysql)
	socket := filepath.Join(dir, "socket")
	d := startDaemon(t, daemonSpec{
		path: lookPath(t, "mariadbd"), dir: dir, user: mysql, ready: "ready for connections", stop: syscall.SIGTERM,
		args: []string{"--no-defaults", "--datadir=" + dir, "--socket=" + socket, "--skip-networking", "--skip-grant-tables",
			"--pid-file=" + filepath.Join(dir, "pid"), "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=4M", "--innodb-flush-log-at-trx-commit=0"},
	})
	session := func() io.ReadWriteCloser {
		return startClient(t, "mariadb", "--no-defaults", "--socket="+socket, "--batch", "--skip-column-names", "--unbuffered")
	}
	const question = "SELECT ASCII('a');"
	first, second := watch(t, session(), question, "97", "4242"), watch(t, session(), question, "97", "4242")
	load := startLoad(t, func(out string) bool { return strings.Contains(out, "Benchmark") && !strings.Contains(out, "ERROR") },
		"mariadb-slap", "--no-defaults", "--socket="+socket, "--concurrency=12", "--number-of-queries=3000", "--create-schema=load",
		"--delimiter=;", "--create=CREATE TABLE t (a INT AUTO_INCREMENT PRIMARY KEY, b VARCHAR(20))",
		"--query=INSERT INTO t (b) VALUES ('abc'); SELECT ASCII(b) FROM t ORDER BY a DESC LIMIT 5")
	return &served{d, patch, "mariadb-ascii", []string{"Item_func_ascii::val_int()"}, load, []*watched{first, second}}
}

// TestPostgres patches a server of many processes: the postmaster, from which
// new backends inherit the patch, and each process that it has made before.
func TestPostgres(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("the short tests patch redis only")
	}
	s, client, question := postgres(t)
	d, patch, load, watches := s.d, s.patch, s.load, s.watches
	watchesReady(watches...)
	load.rounds(t, 1)
	expect(either, watches...)
	apply(t, d.PID(), patch)
	// Whoever connects from now on has it.
	if got := run(t, "psql", append(client, "-c", question)...); got != "1000042\n" {
		t.Errorf("a new backend says %q, want 1000042", got)
	}
	late := testtarget.Start(t, lookPath(t, "psql"), testtarget.Args(client...), testtarget.Unready())
	born, err := strconv.Atoi(late.Ask("SELECT pg_backend_pid();", `^\d+$`))
	if err != nil {
		t.Fatal(err)
	}
	checkList(t, born, map[string]string{"postgres-plus@1": "active"})

	patched := d.eachProcess(t, "apply", "--pid", "PID", patch)
	if len(patched) < len(watches)+2 {
		t.Errorf("only the processes %v are patched", patched)
	}
	expect(onlyNew, watches...)
	load.rounds(t, 1)
	watchesReady(watches...)
	d.eachProcess(t, "verify", "--pid", "PID")
	var host struct {
		Result struct{ Processes []processState }
	}
	r := testtarget.RunJSON(t, &host, "list")
	listed := make(map[int]bool)
	for _, s := range host.Result.Processes {
		listed[s.PID] = true
	}
	for _, pid := range append(patched, born) {
		if !listed[pid] && exists(pid) {
			t.Errorf("process %d is not listed\n%v", pid, r)
		}
	}

	expect(either, watches...)
	d.eachProcess(t, "revert", "--pid", "PID", "postgres-plus")
	if got := run(t, "psql", append(client, "-c", question)...); got != "42\n" {
		t.Errorf("a new backend says %q after the revert, want 42", got)
	}
	late.Ask(question, `^42$`)
	expect(onlyOld, watches...)
	watchesReady(watches...)
	load.rounds(t, 1)
	d.unharmed(t)
	load.stop(t)
	stopWatches(watches...)
}

// postgres starts a server with a process for each client. client are the arguments of
// psql, and question is what the clients ask.
func postgres(t *testing.T) (s *served, client []string, question string) {
	t.Helper()
	testtarget.NeedRoot(t)
	for _, tool := range []string{"psql", "pgbench"} {
		testtarget.Need(t, tool)
	}
	patch := patchOf(t, "postgres.c", `#include "hotpatch.h"
HOTPATCH_NAME("postgres-plus", 1)
unsigned long calls;
// The part of fmgr.h that int4pl needs.
struct arguments {
	void *flinfo, *context, *resultinfo;
	unsigned collation;
	_Bool isnull;
	short nargs;
	struct { unsigned long value; _Bool isnull; } args[2];
};
unsigned long int4pl(struct arguments *a);
unsigned long int4pl(struct arguments *a) {
	__atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
	return (unsigned long)(int)((unsigned)a->args[0].value + (unsigned)a->args[1].value + 1000000);
}
`)
	programs, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(programs) == 0 {
		testtarget.Unavailable(t, "there is no PostgreSQL server where Debian has it (%v); scripts/test installs what the tests need", err)
	}
	program := programs[len(programs)-1]
	dir, user := publicDir(t), credential(t, "postgres")
	own(t, dir, user)
	data := filepath.Join(dir, "data")
	initdb := exec.Command(filepath.Join(filepath.Dir(program), "initdb"), "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--locale=C")
	initdb.Dir = dir
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	d := startDaemon(t, daemonSpec{
		path: program, dir: dir, user: user, ready: "ready to accept connections", stop: syscall.SIGINT,
		args: []string{"-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off"},
	})
	connect := []string{"-h", dir, "-U", "postgres"}
	client = append([]string{"-X", "-q", "-A", "-t", "-d", "postgres"}, connect...)
	question = "SELECT 40 + 2;"
	var watches []*watched
	for range 3 {
		watches = append(watches, watch(t, startClient(t, "psql", client...), question, "42", "1000042"))
	}
	script := filepath.Join(dir, "load.sql")
	if err := os.WriteFile(script, []byte("\\set x random(1, 1000)\nSELECT :x + 1;\nSELECT sum(g + 1) FROM generate_series(1, 20) g;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	load := startLoad(t, func(out string) bool { return strings.Contains(out, "number of failed transactions: 0 (0.000%)") },
		"pgbench", append(connect, "-n", "-f", script, "-c", "6", "-j", "2", "-t", "500", "postgres")...)

	return &served{d, patch, "postgres-plus", []string{"int4pl"}, load, watches}, client, question
}

// eachProcess runs hotpatch for a daemon and all processes that it has made;
// "PID" in the arguments stands for each. Processes that ended meanwhile do not
// count. It gives the others.
func (d *daemon) eachProcess(t *testing.T, args ...string) []int {
	t.Helper()
	var pids []int
	for _, pid := range append(childrenOf(d.PID()), d.PID()) {
		full := make([]string, len(args))
		for i, arg := range args {
			full[i] = arg
			if arg == "PID" {
				full[i] = strconv.Itoa(pid)
			}
		}
		r := testtarget.Run(t, full...)
		switch {
		case r.Exit == 0:
			pids = append(pids, pid)
		case exists(pid) && !strings.Contains(r.Stderr, "[no-such-process]"): // its number may have been given away again
			t.Fatalf("it should exit with 0\n%v", r)
		}
	}
	return pids
}

// exists reports whether there is a process that has not ended.
func exists(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// daemonSpec says how a daemon is started and stopped.
type daemonSpec struct {
	path, dir string
	args      []string
	user      *syscall.Credential // nil: the test's
	ready     string              // what it prints then
	stop      syscall.Signal
}

// daemon is a running one.
type daemon struct {
	*testtarget.Process
	path     string
	port     string // on which it listens, if it does
	started  string // its start time, in the kernel's ticks
	original testtarget.Snapshot
}

func startDaemon(t *testing.T, s daemonSpec) *daemon {
	t.Helper()
	p := testtarget.Start(t, s.path, testtarget.Args(s.args...), testtarget.Dir(s.dir), testtarget.Unready(),
		testtarget.Attr(func(a *syscall.SysProcAttr) { a.Credential = s.user }))
	t.Cleanup(func() { // gently, since it may have shared memory
		children := make(map[int]string)
		for _, pid := range childrenOf(p.PID()) {
			children[pid], _ = startTime(pid) // it may have ended
		}
		_ = syscall.Kill(p.PID(), s.stop)
		if !p.Exited(testtarget.Timeout) {
			t.Errorf("%s does not end", s.path)
			p.Stop()
		}
		// They may be in process groups of their own.
		for pid, started := range children {
			if now, err := startTime(pid); err == nil && now == started && exists(pid) {
				t.Errorf("process %d of %s does not end", pid, s.path)
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	})
	p.Line(s.ready, 2*testtarget.Timeout)
	started, err := startTime(p.PID())
	if err != nil {
		t.Fatal(err)
	}
	return &daemon{Process: p, path: s.path, started: started, original: testtarget.TextSnapshot(t, p.PID())}
}

// startTime gives when a process was started, field 22 of /proc/PID/stat.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	return fields[22-3], nil
}

// childrenOf gives the children of a process's first thread.
func childrenOf(pid int) []int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil // it has ended
	}
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		if child, err := strconv.Atoi(field); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}

// patchUnderLoad applies a patch of a daemon with one process, lists and
// verifies it, and reverts it, while the load and the watches go on.
func (d *daemon) patchUnderLoad(t *testing.T, patch, name string, functions []string, load *loading, watches ...*watched) {
	t.Helper()
	pid := strconv.Itoa(d.PID())
	watchesReady(watches...)
	load.rounds(t, 1)

	expect(either, watches...)
	apply(t, d.PID(), patch)
	expect(onlyNew, watches...)
	counter := patchVariable(t, d.PID(), patch, name, "calls")
	before := counter()
	load.rounds(t, 1)
	watchesReady(watches...)
	if after := counter(); after < before+500 {
		t.Errorf("the new function was called %d times in a whole round of the load", after-before)
	}
	checkList(t, d.PID(), map[string]string{name + "@1": "active"})
	text := must(t, "list", "--pid", pid).Stdout
	for _, f := range functions {
		if !strings.Contains(text, f) {
			t.Errorf("list should say %q:\n%s", f, text)
		}
	}
	verify(t, d.PID())
	must(t, "apply", "--pid", pid, patch) // already

	expect(either, watches...)
	revert(t, d.PID(), name)
	expect(onlyOld, watches...)
	before = counter()
	load.rounds(t, 1)
	watchesReady(watches...)
	if after := counter(); after != before {
		t.Errorf("the new function was called %d times after the revert", after-before)
	}
	checkList(t, d.PID(), nil)
	verify(t, d.PID())

	// Again and again, with no pause between.
	expect(either, watches...)
	for range 5 {
		apply(t, d.PID(), patch)
		revert(t, d.PID())
	}
	expect(onlyOld, watches...)
	watchesReady(watches...)
	d.unharmed(t)
	load.stop(t)
	stopWatches(watches...)
}

// unharmed ends the test unless the daemon is the process that was started, and
// all code that it had then is as it was. What it loads and unloads by itself
// does not count.
func (d *daemon) unharmed(t *testing.T) {
	t.Helper()
	d.Healthy(t)
	if now, err := startTime(d.PID()); now != d.started {
		t.Errorf("process %d was started at %s, and now there is one started at %s (%v)", d.PID(), d.started, now, err)
	}
	for _, line := range testtarget.Diff(d.original, testtarget.TextSnapshot(t, d.PID())) {
		if !strings.HasPrefix(line, "added ") {
			t.Errorf("%s: %s", d.path, line)
		}
	}
}

// patchVariable gives a function that reads an unsigned long of an applied patch
// library out of the target's memory.
func patchVariable(t *testing.T, pid int, path, name, variable string) func() uint64 {
	t.Helper()
	var listed struct {
		Result struct {
			Processes []struct {
				Patches []struct {
					Name    string
					Library address
				}
			}
		}
	}
	r := testtarget.RunJSON(t, &listed, "list", "--pid", strconv.Itoa(pid))
	for _, s := range listed.Result.Processes {
		for _, p := range s.Patches {
			if p.Name == name {
				at := uint64(p.Library) + symbolAddr(t, path, variable) // a shared object begins at 0
				return func() uint64 { return binary.LittleEndian.Uint64(peek(t, pid, at, 8)) }
			}
		}
	}
	t.Fatalf("%s is not listed\n%v", name, r)
	return nil
}
