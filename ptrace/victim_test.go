package ptrace

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
)

// victimSource is a program whose threads the tests stop. Commands on standard
// input, each answered by one line:
//
//	begin KIND   a new thread: "begun TID"
//	count        "count N": how often the handler of SIGRTMIN has run
//	ticks        "ticks N": how often a thread that never stops has counted
//	broken       "broken N": how many waits have ended before their time
//	constant     "constant ADDRESS VALUE" of a constant
//	release      lets the threads of kind vfork go on: each prints "returned"
const victimSource = `
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile long handled, ticks, broken;
static const long constant = 0x1122334455667788;
static int gate[2];

static void on_signal(int number) { (void)number, __atomic_add_fetch(&handled, 1, __ATOMIC_SEQ_CST); }

static void print_constant(const long *at) {
	__asm__ volatile("" : "+r"(at)); // its value is not known
	printf("constant %p %lx\n", (const void *)at, *at);
}

static void *tick(void *arg) {
	for (;; usleep(200))
		ticks++;
	return arg;
}
static void *sleeps(void *arg) {
	for (;;)
		pause();
	return arg;
}
static void *calls(void *arg) {
	for (;;)
		syscall(SYS_getppid);
	return arg;
}
static void *spins(void *arg) {
	__asm__ volatile("movabs $0x0123456789abcdef, %rax\n\tmovq %rax, %xmm0\n\tmovq %rax, %xmm15\n1:\tpause\n\tjmp 1b");
	return arg;
}
static void *ends(void *arg) { return arg; }
static void *polls(void *arg) {
	struct epoll_event event;
	int fd = epoll_create1(0);
	for (;;)
		epoll_wait(fd, &event, 1, -1), broken++;
	return arg;
}
static void *polls_masked(void *arg) {
	struct epoll_event event;
	sigset_t none;
	int fd = epoll_create1(0);
	sigemptyset(&none);
	for (;;)
		epoll_pwait(fd, &event, 1, -1, &none), broken++;
	return arg;
}
static void *waits(void *arg) {
	sigset_t set;
	struct timespec hour = {3600, 0};
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	for (;;)
		sigtimedwait(&set, NULL, &hour), broken++;
	return arg;
}
static void *receives(void *arg) {
	int ends[2];
	char c;
	struct timeval hour = {3600, 0};
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0 || setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &hour, sizeof hour) != 0)
		exit(1);
	for (;;)
		recv(ends[0], &c, 1, 0), broken++;
	return arg;
}
// Until its child has gone, a thread that has called vfork does not stop.
static void *vforks(void *arg) {
	char c;
	pid_t pid = vfork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(read(gate[0], &c, 1) == 1 ? 0 : 1);
	}
	printf("returned\n");
	return arg;
}

static const struct {
	const char *name;
	void *(*run)(void *);
} kinds[] = {{"sleeps", sleeps}, {"calls", calls}, {"spins", spins}, {"ends", ends}, {"polls", polls},
             {"polls_masked", polls_masked}, {"waits", waits}, {"receives", receives}, {"vforks", vforks}};

static void *begin(void *kind) {
	printf("begun %d\n", gettid());
	return kinds[(long)kind].run(NULL);
}

int main(void) {
	pthread_t thread;
	char line[64];
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	sigaction(SIGRTMIN, &action, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (pipe(gate) != 0 || pthread_create(&thread, NULL, tick, NULL) != 0)
		return 1;
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL) {
		line[strcspn(line, "\n")] = 0;
		if (strcmp(line, "count") == 0)
			printf("count %ld\n", __atomic_load_n(&handled, __ATOMIC_SEQ_CST));
		else if (strcmp(line, "ticks") == 0)
			printf("ticks %ld\n", ticks);
		else if (strcmp(line, "broken") == 0)
			printf("broken %ld\n", broken);
		else if (strcmp(line, "constant") == 0)
			print_constant(&constant);
		else if (strcmp(line, "release") == 0)
			printf("release %d\n", (int)write(gate[1], "x", 1));
		else if (strncmp(line, "begin ", 6) == 0)
			for (unsigned long k = 0; k < sizeof kinds / sizeof *kinds; k++)
				if (strcmp(line + 6, kinds[k].name) == 0 && pthread_create(&thread, NULL, begin, (void *)k) != 0)
					return 1;
	}
}
`

// victim starts the program.
func victim(t *testing.T) (*testtarget.Process, *procfs.Proc) {
	t.Helper()
	p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Name: "victim", Flags: []string{"-O2"}, Files: map[string]string{"victim.c": victimSource}}))
	proc, err := procfs.Open(p.PID())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proc.Close() })
	return p, proc
}

// begin starts a thread of the victim and gives its id.
func begin(t *testing.T, p *testtarget.Process, kind string) int {
	t.Helper()
	return number(t, p.Ask("begin "+kind, "^begun [0-9]+$"))
}

// ask gives the number in an answer of the victim.
func ask(t *testing.T, p *testtarget.Process, what string) int {
	t.Helper()
	return number(t, p.Ask(what, "^"+what+" [0-9]+$"))
}

func number(t *testing.T, line string) int {
	t.Helper()
	n, err := strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1:])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// traced runs a function with a tracer for the process.
func traced(t *testing.T, proc *procfs.Proc, f func(tr *Tracer)) {
	t.Helper()
	if err := Run(proc, func(tr *Tracer) error { f(tr); return nil }); err != nil {
		t.Fatal(err)
	}
}

// await waits until a condition holds.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testtarget.Timeout); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it did not come about: %s", what)
		}
	}
}

// stateOf gives the state of a thread, as in proc(5), and its tracer.
func stateOf(t *testing.T, proc *procfs.Proc, tid int) (state byte, tracer int) {
	t.Helper()
	st, err := proc.Status(tid)
	if err != nil {
		t.Fatal(err)
	}
	return st.State, st.TracerPid
}

// awaitCall waits until a thread sleeps in a system call.
func awaitCall(t *testing.T, proc *procfs.Proc, tid, call int) {
	t.Helper()
	await(t, fmt.Sprintf("thread %d is in system call %d", tid, call), func() bool {
		sys, err := proc.Syscall(tid)
		return err == nil && !sys.Running && int(sys.Nr) == call
	})
}

// seized seizes and stops a thread.
func seized(t *testing.T, tr *Tracer, tid int) *Thread {
	t.Helper()
	th, err := tr.Seize(tid)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Stop(th, testtarget.Timeout); err != nil {
		t.Fatal(err)
	}
	return th
}

// read gives a victim's memory.
func read(t *testing.T, p *testtarget.Process, addr uint64, n int) []byte {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, int64(addr)); err != nil {
		t.Fatal(err)
	}
	return b
}
