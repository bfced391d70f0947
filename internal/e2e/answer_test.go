package e2e

import (
	"fmt"
	"testing"

	"hotpatch/internal/testtarget"
)

// The answer program, in C or in C++: small enough for every C library and every
// odd process, and free of threads where it is built without them. Its function
// answer, and in C++ the virtual function Oracle::tell, give their argument
// times ten plus their version: 0, or that of the patch. On standard input:
//
//	version     "version V bad N": what the functions say, called from here, and
//	            how many wrong results the threads have had
//	fork        makes a child: "child PID"
//	child       the same question to the child: "child version V bad N"
//
// An argument "leaderless" has another thread do all this, and ends the main
// thread. Built with -DTHREADS, three threads call the functions all the time.
const answerHeader = `#pragma once
long answer(long x);
#ifdef __cplusplus
struct Oracle {
	virtual ~Oracle();
	virtual long tell(long x);
};
#endif
`

const answerFunctions = `#include "answer.h"
#ifdef OTHER_LAYOUT
long before_answer(long x);
long before_answer(long x) {
	long sum = 0;
	for (long i = 0; i < x; i++)
		sum = sum * 3 + (i ^ x) / 7;
	return sum;
}
#endif
__attribute__((noinline)) long answer(long x) { return x * 10; }
#ifdef __cplusplus
Oracle::~Oracle() {}
__attribute__((noinline)) long Oracle::tell(long x) { return x * 10; }
#endif
`

const answerMain = `#define _GNU_SOURCE
#include "answer.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#ifdef THREADS
#include <pthread.h>
#endif

#ifdef __cplusplus
static __attribute__((noinline)) Oracle *make(void) { return new Oracle; }
static Oracle *oracle = make();
#endif

static unsigned long bad;

static int version(long x) {
	long got = answer(x);
#ifdef __cplusplus
	long told = oracle->tell(x);
	if (told / 10 != x || told % 10 > 2)
		__atomic_add_fetch(&bad, 1, __ATOMIC_SEQ_CST);
#endif
	if (got / 10 != x || got % 10 > 2)
		__atomic_add_fetch(&bad, 1, __ATOMIC_SEQ_CST);
#ifdef __cplusplus
	if (told != got)
		return -1;
#endif
	return (int)(got % 10);
}

static void tell_version(const char *who) {
	int v = version(123);
	printf("%sversion %d bad %lu\n", who, v, __atomic_load_n(&bad, __ATOMIC_SEQ_CST));
}

static int to_child[2];

static void child(void) {
	char c;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(to_child[1]);
	while (read(to_child[0], &c, 1) == 1)
		tell_version("child ");
	_exit(0);
}

static void *serve(void *arg) {
	char line[64];
	(void)arg;
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (strcmp(line, "version\n") == 0) {
			tell_version("");
		} else if (strcmp(line, "fork\n") == 0) {
			if (pipe(to_child) != 0)
				exit(1);
			pid_t pid = fork();
			if (pid == 0)
				child();
			printf("child %d\n", (int)pid);
		} else if (strcmp(line, "child\n") == 0) {
			if (write(to_child[1], "?", 1) != 1)
				printf("no child\n");
		} else {
			printf("what?\n");
		}
	}
	exit(0);
}

#ifdef THREADS
static void *work(void *arg) {
	for (long x = 1;; x = x % 1000 + 1)
		version(x);
	return arg;
}
#endif

int main(int argc, char **argv) {
	setvbuf(stdout, NULL, _IOLBF, 0);
#ifdef THREADS
	pthread_t thread;
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&thread, NULL, work, NULL) != 0)
			return 1;
	if (argc > 1 && strcmp(argv[1], "leaderless") == 0) {
		if (pthread_create(&thread, NULL, serve, NULL) != 0)
			return 1;
		pthread_exit(NULL);
	}
#endif
	(void)argc, (void)argv;
	serve(NULL);
	return 0;
}
`

// answerPatch is a patch of all that the answer program can say, made with
// -DVERSION.
const answerPatch = `#include "answer.h"
#include "hotpatch.h"
HOTPATCH_NAME("answer", VERSION)
long answer(long x) { return x * 10 + VERSION; }
#ifdef __cplusplus
long Oracle::tell(long x) { return x * 10 + VERSION; }
#endif
`

// answerSpec says how to build the answer program: with s's compiler, flags and
// tree, as C++ if the compiler is one for it.
func answerSpec(s testtarget.Spec) testtarget.Spec {
	ext := ".c"
	if s.Compiler == "g++" || s.Compiler == "clang++" {
		ext = ".cc"
	}
	s.Files = map[string]string{"answer.h": answerHeader, "functions" + ext: answerFunctions, "main" + ext: answerMain}
	s.Name = "answer"
	return s
}

// answerPatchOf builds version 1 or 2 of the patch for a program made by
// answerSpec.
func answerPatchOf(t testing.TB, s testtarget.Spec, version int) string {
	t.Helper()
	ext := ".c"
	if s.Compiler == "g++" || s.Compiler == "clang++" {
		ext = ".cc"
	}
	return testtarget.Build(t, testtarget.Spec{
		Files:    map[string]string{"answer.h": answerHeader, "patch" + ext: answerPatch},
		Compiler: s.Compiler, Tree: s.Tree, Shared: true, Name: "answer.so",
		Flags: []string{"-O2", "-Wl,--as-needed", fmt.Sprintf("-DVERSION=%d", version)},
	})
}

// answerSays ends the test unless the answer program runs this version.
func answerSays(t testing.TB, p *testtarget.Process, version int) {
	t.Helper()
	want := fmt.Sprintf("version %d bad 0", version)
	if got := p.Ask("version", "^version "); got != want {
		t.Fatalf("the target says %q, want %q", got, want)
	}
}

// childSays is answerSays for the child.
func childSays(t testing.TB, p *testtarget.Process, version int) {
	t.Helper()
	want := fmt.Sprintf("child version %d bad 0", version)
	if got := p.Ask("child", "^child version "); got != want {
		t.Fatalf("the child says %q, want %q", got, want)
	}
}

// wholeLife applies, lists, verifies and reverts the patches of the answer
// program, and looks at its answers and its memory each time.
func wholeLife(t testing.TB, p *testtarget.Process, patch1, patch2 string) {
	t.Helper()
	original := testtarget.TextSnapshot(t, p.PID())
	answerSays(t, p, 0)
	apply(t, p.PID(), patch1)
	answerSays(t, p, 1)
	checkList(t, p.PID(), map[string]string{"answer@1": "active"})
	verify(t, p.PID())
	apply(t, p.PID(), patch2)
	answerSays(t, p, 2)
	checkList(t, p.PID(), map[string]string{"answer@1": "shadowed", "answer@2": "active"})
	verify(t, p.PID())
	revert(t, p.PID(), "answer@1")
	answerSays(t, p, 2)
	revert(t, p.PID())
	answerSays(t, p, 0)
	checkList(t, p.PID(), nil)
	unchanged(t, original, p.PID())
}
