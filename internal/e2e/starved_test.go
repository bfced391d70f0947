package e2e

import (
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// starved has two threads that get a processor only where nobody else wants one, and go
// round and round when they do.
const starved = `
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>
long plus_one(long x);
__attribute__((noinline)) long plus_one(long x) { return x + 1; }
static void *round_and_round(void *unused) {
	(void)unused;
	struct sched_param none = {0};
	sched_setscheduler(0, SCHED_IDLE, &none);
	for (volatile unsigned long i = 0;; i++)
		;
}
int main(void) {
	pthread_t thread;
	for (int i = 0; i < 2; i++)
		if (pthread_create(&thread, NULL, round_and_round, NULL) != 0)
			return 1;
	printf("READY %d\n", getpid());
	fflush(stdout);
	char line[64];
	while (fgets(line, sizeof line, stdin) != NULL) {
		printf("plus_one(1) = %ld\n", plus_one(1));
		fflush(stdout);
	}
	return 0;
}
`

const hog = `
#include <stdio.h>
#include <unistd.h>
int main(void) {
	printf("READY %d\n", getpid());
	fflush(stdout);
	for (volatile unsigned long i = 0;; i++)
		;
}
`

// TestStarvedThreads: threads that wait for a processor which others take are waited for
// while the process runs, and not while it is stopped.
func TestStarvedThreads(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds, as long as starved threads wait for processors")
	}
	testtarget.NeedRoot(t) // without a priority, hotpatch itself waits for a processor
	p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Name: "starved", Files: map[string]string{"starved.c": starved}, Flags: []string{"-O1"}}))
	patch := testtarget.Build(t, testtarget.Spec{Name: "starved.so", Shared: true, Flags: []string{"-O1"},
		Files: map[string]string{"patch.c": "long plus_one(long x);\nlong plus_one(long x) { return x + 1000; }\n"}})
	other := testtarget.Build(t, testtarget.Spec{Name: "hog", Files: map[string]string{"hog.c": hog}, Flags: []string{"-O1"}})
	for range runtime.NumCPU() {
		testtarget.Start(t, other)
	}

	var pauses, commands []float64 // µs
	change := func(args ...string) {
		t.Helper()
		began := time.Now()
		r := testtarget.Run(t, append(args, "--json", "--timeout", "1m", "--pid", strconv.Itoa(p.PID()))...)
		commands = append(commands, float64(time.Since(began).Microseconds()))
		pause, err := testtarget.PauseOf(r.Stdout)
		if err != nil || r.Exit != 0 {
			t.Fatal(err, r)
		}
		pauses = append(pauses, pause.Microseconds)
	}
	for range 4 {
		change("apply", patch)
		p.Ask("?", `^plus_one\(1\) = 1001$`)
		change("revert", "--all")
		p.Ask("?", `^plus_one\(1\) = 2$`)
	}
	middle := func(list []float64) float64 { return slices.Sorted(slices.Values(list))[len(list)/2] }
	if pause, command := middle(pauses), middle(commands); pause <= 0 || 8*pause > command {
		t.Errorf("the pause takes %.0f µs of %.0f: it is waited for the starved threads in it; all: %.0f", pause, command, pauses)
	}
	p.Healthy(t)
}
