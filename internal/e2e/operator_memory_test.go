package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// plainPatch builds a version of a patch of `long f(long)`, the function of the
// programs of this file: it gives its argument and plus instead of 1.
func plainPatch(t testing.TB, version, plus int) string {
	t.Helper()
	return calcPatch(t, "f", plus, "f", version)
}

// TestCoroutineInLargeMapping: a thread runs on a small stack that was cut from a
// large mapping which nobody has touched. Whether that is found out or all of the
// mapping is looked through: the process is not stopped for longer than allowed
// (three times as long, to be fair to a busy machine), and does not grow.
func TestCoroutineInLargeMapping(t *testing.T) {
	t.Parallel()
	program := testtarget.Build(t, testtarget.Spec{Name: "slab", Flags: []string{"-O2"}, Files: map[string]string{"slab.c": slabSource}})
	patch := plainPatch(t, 1, 1000)
	for _, test := range []struct {
		megabytes int
		limit     time.Duration
	}{
		{512, 500 * time.Millisecond},
		{16384, 300 * time.Millisecond}, // which takes seconds to be looked through
	} {
		t.Run(fmt.Sprintf("%d MiB", test.megabytes), func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, program, testtarget.Args(strconv.Itoa(test.megabytes)))
			says := func(want int) (longest time.Duration) {
				t.Helper()
				var f int
				var gap int64
				got := p.Ask("?", "^f ")
				if n, err := fmt.Sscanf(got, "f %d gap %d", &f, &gap); n != 2 || f != want {
					t.Fatalf("the target says %q, want f %d (%v)", got, want, err)
				}
				return time.Duration(gap) * time.Microsecond
			}
			kilobytes := func() (n int) {
				for _, field := range []string{"VmRSS", "VmPTE"} {
					k, err := strconv.Atoi(strings.TrimSuffix(statusField(t, p.PID(), field), " kB"))
					if err != nil {
						t.Fatal(err)
					}
					n += k
				}
				return n
			}
			before, code := kilobytes(), testtarget.TextSnapshot(t, p.PID())
			flags := []string{"--pid", strconv.Itoa(p.PID()), "--max-pause", test.limit.String()}
			// What else runs here makes the target stand still, too, but not each time.
			var longest time.Duration
			for range 6 {
				says(2)
				var r reply
				r.run = testtarget.RunJSON(t, &r, with(with([]string{"apply"}, flags...), patch)...)
				switch {
				case r.run.Exit == 0:
					longest = says(1001)
					for tries := 0; ; tries++ {
						end := testtarget.Run(t, with(with([]string{"revert"}, flags...), "--all")...)
						if end.Exit == 0 {
							break
						}
						if end.Exit != 3 || tries > 100 {
							t.Fatal(end)
						}
					}
					longest = max(longest, says(2))
				case r.run.Exit == 3 && r.Error != nil && slices.Contains([]string{"max-pause", "threads-busy", "not-stopped", "no-agent"}, r.Error.Code):
					longest = says(2)
					untouched(t, code, p.PID())
				default:
					t.Fatal(r.run)
				}
				t.Log(r.run)
				if longest < 3*test.limit {
					break
				}
			}
			if longest > 3*test.limit {
				t.Errorf("the target stood still for %v, and %v were allowed", longest, test.limit)
			}
			if now := kilobytes(); now-before > 64<<10 {
				t.Errorf("the process has grown from %d to %d kB", before, now)
			}
			p.Healthy(t)
		})
	}
}

// slabSource serves questions on a stack of 64 KiB at the start of a mapping of so
// many megabytes: "f RESULT gap N", where N is the longest time, in microseconds
// and since the last question, in which another thread of it did not run.
const slabSource = `
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
static ucontext_t from, coroutine;
static volatile long gap;
__attribute__((noinline)) long f(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}
static long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}
static void *watch(void *arg) {
	for (long last = now();; usleep(500)) {
		long since = now() - last;
		last += since;
		if (since > gap)
			gap = since;
	}
	return arg;
}
static void serve(void) {
	char line[64];
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL) {
		usleep(2000); // the watch has seen what was before the question
		printf("f %ld gap %ld\n", f(1), gap);
		gap = 0;
	}
	exit(0);
}
int main(int argc, char **argv) {
	size_t size = strtoul(argv[1], NULL, 10) << 20, stack = 64 << 10;
	char *slab = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	pthread_t thread;
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (slab == MAP_FAILED || argc != 2 || pthread_create(&thread, NULL, watch, NULL) != 0)
		return 1;
	getcontext(&coroutine);
	coroutine.uc_stack.ss_sp = slab; // the rest of the mapping is above it
	coroutine.uc_stack.ss_size = stack;
	coroutine.uc_link = &from;
	makecontext(&coroutine, serve, 0);
	swapcontext(&from, &coroutine);
}
`

// TestThreadsThatComeAndGo: threads begin and end all the time. Every apply and
// every revert comes to its end all the same.
func TestThreadsThatComeAndGo(t *testing.T) {
	t.Parallel()
	program := testtarget.Build(t, testtarget.Spec{Name: "brief", Flags: []string{"-O2"}, Files: map[string]string{"brief.c": `
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static volatile long threads, bad;
__attribute__((noinline)) long f(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}
static void *brief(void *arg) {
	long got = f((long)arg);
	if (got != (long)arg + 1 && got != (long)arg + 1000)
		__atomic_add_fetch(&bad, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&threads, 1, __ATOMIC_RELAXED);
	return NULL;
}
static void *breed(void *arg) {
	for (long i = 0;; i++) {
		pthread_t made[4];
		for (int k = 0; k < 4; k++) {
			pthread_attr_t attr; // stacks of many sizes, so that few are used again
			pthread_attr_init(&attr);
			pthread_attr_setstacksize(&attr, (12 + (i * 4 + k) % 11) << 20);
			if (pthread_create(&made[k], &attr, brief, (void *)i) != 0)
				abort();
			pthread_attr_destroy(&attr);
		}
		for (int k = 0; k < 4; k++)
			pthread_join(made[k], NULL);
		usleep(300);
	}
	return arg;
}
int main(void) {
	pthread_t thread;
	char line[64];
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int k = 0; k < 2; k++)
		if (pthread_create(&thread, NULL, breed, NULL) != 0)
			return 1;
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL)
		printf("f %ld bad %ld threads %ld\n", f(1), bad, threads);
}
`}})
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	patch := plainPatch(t, 1, 1000)
	p := testtarget.Start(t, program)
	original := testtarget.TextSnapshot(t, p.PID())
	made := 0
	says := func(want int) {
		t.Helper()
		var f, bad, threads int
		got := p.Ask("?", "^f ")
		if n, err := fmt.Sscanf(got, "f %d bad %d threads %d", &f, &bad, &threads); n != 3 || f != want || bad != 0 || threads < made {
			t.Fatalf("the target says %q, want f %d, bad 0 and %d threads or more (%v)", got, want, made, err)
		}
		made = threads
	}
	for range rounds {
		says(2)
		before := made
		apply(t, p.PID(), patch)
		says(1001)
		p.Healthy(t)
		revert(t, p.PID())
		says(2)
		if made == before {
			t.Fatal("no thread has begun: the test has no case")
		}
	}
	verify(t, p.PID())
	untouched(t, original, p.PID())
	p.Healthy(t)
}

// TestForkedMeanwhile: children are born while hotpatch works on their parent, at
// any moment. Each is a process like any other: it can be patched and reverted.
func TestForkedMeanwhile(t *testing.T) {
	lengthy(t)
	t.Parallel()
	program := testtarget.Build(t, testtarget.Spec{Name: "forks", Flags: []string{"-O2"}, Files: map[string]string{"forks.c": `
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
enum { most = 64 };
static volatile struct { long result, calls; } *said;
__attribute__((noinline)) long f(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}
static void child(int k) {
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		said[k].result = f(1);
		said[k].calls++;
		usleep(500);
	}
}
// What the child says now: a call that began after this one.
static long fresh(int k) {
	for (long calls = said[k].calls; said[k].calls < calls + 2;)
		usleep(500);
	return said[k].result;
}
int main(void) {
	char line[64];
	int children = 0, k;
	setvbuf(stdout, NULL, _IOLBF, 0);
	said = mmap(NULL, most * sizeof *said, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (strcmp(line, "fork\n") == 0 && children < most) {
			pid_t pid = fork();
			if (pid == 0)
				child(children);
			children++;
			printf("child %d\n", (int)pid);
		} else if (sscanf(line, "child %d", &k) == 1) {
			printf("f %ld\n", fresh(k));
		} else {
			printf("f %ld\n", f(1));
		}
	}
}
`}})
	const forks = 12
	one, nine := plainPatch(t, 1, 1000), plainPatch(t, 9, 9000)
	p := testtarget.Start(t, program)
	pid := strconv.Itoa(p.PID())
	says := func(question string, want int) {
		t.Helper()
		if got := p.Ask(question, "^f "); got != fmt.Sprintf("f %d", want) {
			t.Fatalf("%q gives %q, want f %d", question, got, want)
		}
	}
	apply(t, p.PID(), one) // so that a revert is possible first, too
	var children []int
	during := 0
	for n := 0; len(children) < forks; n++ {
		args := []string{"revert", "--pid", pid, "--all"}
		if n%2 == 1 {
			args = []string{"apply", "--pid", pid, one}
		}
		c := begin(t, args...)
		done := make(chan testtarget.Result, 1)
		go func() { done <- c.end(t) }()
		for running := true; running; {
			select {
			case r := <-done:
				if running = false; r.Exit != 0 {
					t.Fatal(r)
				}
			case <-time.After(time.Duration(3+n%5) * time.Millisecond):
				if len(children) >= forks {
					continue
				}
				child, err := strconv.Atoi(strings.TrimPrefix(p.Ask("fork", "^child "), "child "))
				if err != nil || child <= 0 {
					t.Fatalf("no child: %d, %v", child, err)
				}
				children = append(children, child)
				during++
			}
		}
		says("?", []int{2, 1001}[n%2])
	}
	t.Logf("%d children were born while hotpatch ran", during)
	for k, child := range children {
		testtarget.CheckHealthy(t, child)
		question := fmt.Sprintf("child %d", k)
		if n := p.Ask(question, "^f "); n != "f 2" && n != "f 1001" {
			t.Fatalf("child %d says %q", k, n)
		}
		apply(t, child, nine)
		says(question, 9001)
		verify(t, child)
		revert(t, child)
		says(question, 2)
		checkList(t, child, nil)
		verify(t, child)
		testtarget.CheckHealthy(t, child)
	}
	verify(t, p.PID())
	p.Healthy(t)
}

// TestDamagedIsland: the code through which a patched entry jumps is damaged. The
// entry itself is as it should be, and verify finds it all the same.
func TestDamagedIsland(t *testing.T) {
	t.Parallel()
	p := calculator(t)
	pid := strconv.Itoa(p.PID())
	entry := uint64(applyOne(t, p.PID(), calcPatch(t, "add_one", 1000, "island", 1)).only(t).Old)
	b := peek(t, p.PID(), entry, 5)
	if b[0] != 0xe9 {
		t.Fatalf("at %#x are % x, which is no jump", entry, b)
	}
	slot := entry + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(b[1:]))))
	good := peek(t, p.PID(), slot, 8)
	for i := range 6 { // jmp *disp32(%rip)
		at := slot + uint64(i)
		poke(t, p.PID(), at, []byte{good[i] ^ 0x20})
		damaged := testtarget.TextSnapshot(t, p.PID())
		found, r := processesOf(t, "verify", "--pid", pid)
		if r.Exit != 6 || len(found) != 1 || len(found[0].Differences) != 1 {
			t.Fatalf("byte %d of the slot: verify should exit with 6 and show one difference\n%v", i, r)
		}
		if d := found[0].Differences[0]; d.Kind != "island" || d.Address != fmt.Sprintf("%#x", slot) || d.Function != "add_one" || d.Want == d.Have {
			t.Errorf("byte %d of the slot: the difference is %+v, want the island's slot %#x of add_one", i, d, slot)
		}
		if r := testtarget.Run(t, "verify", "--pid", pid); r.Exit != 6 || !strings.Contains(r.Stdout+r.Stderr, fmt.Sprintf("%#x", slot)) {
			t.Errorf("byte %d of the slot: verify should exit with 6 and name %#x\n%v", i, slot, r)
		}
		identical(t, damaged, p.PID())
		poke(t, p.PID(), at, good[i:i+1])
		if testing.Short() && i == 1 {
			break
		}
	}
	verify(t, p.PID())
	answers(t, p, "add_one", 5, 1005)
	revert(t, p.PID())
	answers(t, p, "add_one", 5, 6)
	p.Healthy(t)
}

// sandboxSource has two threads besides the main one. Its argument says which
// threads get a filter that kills the process at mmap: main, worker, all.
const sandboxSource = `
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
__attribute__((noinline)) long f(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}
static pthread_barrier_t confined_all;
static void confine(void) {
	struct sock_filter code[] = {
	    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 1),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof code / sizeof *code, code};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
		printf("no filter\n");
}
static void *work(void *confined) {
	if (confined != NULL)
		confine();
	pthread_barrier_wait(&confined_all);
	for (;;)
		usleep(1000);
	return NULL;
}
int main(int argc, char **argv) {
	const char *who = argc > 1 ? argv[1] : "";
	int all = strcmp(who, "all") == 0;
	pthread_t thread;
	char line[64];
	setvbuf(stdout, NULL, _IOLBF, 0);
	pthread_barrier_init(&confined_all, NULL, 3);
	if (pthread_create(&thread, NULL, work, all || strcmp(who, "worker") == 0 ? &thread : NULL) != 0 ||
	    pthread_create(&thread, NULL, work, all ? &thread : NULL) != 0)
		return 1;
	fprintf(stderr, "warm\n"); // whatever the first output allocates
	fgets(line, 0, stdin);
	if (all || strcmp(who, "main") == 0)
		confine();
	pthread_barrier_wait(&confined_all);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL)
		printf("f %ld\n", f(1));
}
`

// TestOneConfinedThread: one thread may not call mmap, on pain of death of the
// process. The others may, and so the process is patched through one of them.
func TestOneConfinedThread(t *testing.T) {
	t.Parallel()
	program := testtarget.Build(t, testtarget.Spec{Name: "sandbox", Flags: []string{"-O2"}, Files: map[string]string{"sandbox.c": sandboxSource}})
	patch := plainPatch(t, 1, 1000)
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	for _, who := range []string{"main", "worker"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, program, testtarget.Args(who))
			if filtered := filteredThreads(t, p.PID()); filtered != 1 {
				t.Fatalf("%d threads have a filter, want 1", filtered)
			}
			for range rounds {
				apply(t, p.PID(), patch)
				if got := p.Ask("?", "^f "); got != "f 1001" {
					t.Fatalf("the target says %q", got)
				}
				revert(t, p.PID())
				if got := p.Ask("?", "^f "); got != "f 2" {
					t.Fatalf("the target says %q", got)
				}
			}
			p.Healthy(t)
		})
	}
	t.Run("all", func(t *testing.T) {
		t.Parallel()
		p := testtarget.Start(t, program, testtarget.Args("all"))
		if filtered := filteredThreads(t, p.PID()); filtered != 3 {
			t.Fatalf("%d threads have a filter, want 3", filtered)
		}
		before := testtarget.TextSnapshot(t, p.PID())
		if e := applyRefused(t, p.PID(), 5, "seccomp", patch); !strings.Contains(e.Why, "all of its threads") {
			t.Errorf("%+v", e)
		}
		identical(t, before, p.PID())
		if got := p.Ask("?", "^f "); got != "f 2" {
			t.Fatalf("the target says %q", got)
		}
		p.Healthy(t)
	})
}

// filteredThreads counts the threads that have a seccomp filter.
func filteredThreads(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			t.Fatal(err)
		}
		if statusField(t, tid, "Seccomp") == "2" {
			n++
		}
	}
	return n
}
