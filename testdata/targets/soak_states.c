// A program in a state in which not every tool can deal with a process.
//
//	soak_states STATE [ARGUMENT]
//
//	plain           nothing special
//	exits           ends with status 42 after ARGUMENT microseconds
//	execs           executes itself all the time; the argument counts
//	spawns          makes children with vfork all the time
//	strict          in seccomp's strict mode: read, write and exit only
//	no-new-privs    may gain no privileges
//	not-dumpable    PR_SET_DUMPABLE is 0
//	no-gain         no memory may become executable (PR_SET_MDWE); status 3: no such kernel
//	real-time       all memory locked, SCHED_FIFO; status 3: not allowed
//
// Answers "?" on standard input with "plus_one(1) = 2" (execs: and the count).
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((noinline)) long plus_one(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}

static void *spawns(void *arg) {
	for (;;) {
		pid_t child = vfork();
		if (child == 0) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(9);
		}
		int status;
		if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
			printf("WRONG child\n");
			_exit(1);
		}
	}
	return arg;
}

static long count;

// answer takes a line from standard input and answers it, with read and write alone.
static int answer(void) {
	char line[64], text[80];
	ssize_t n = read(0, line, sizeof line);
	if (n <= 0)
		return 0;
	if (line[0] == '?') {
		int length = snprintf(text, sizeof text, "plus_one(1) = %ld count %ld\n", plus_one(1), count);
		if (write(1, text, length) != length)
			return 0;
	}
	return 1;
}

int main(int argc, char **argv) {
	const char *state = argc > 1 ? argv[1] : "plain";
	int failed = 0;
	if (argc > 2)
		count = atol(argv[2]);
	if (strcmp(state, "no-new-privs") == 0)
		failed = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	else if (strcmp(state, "not-dumpable") == 0)
		failed = prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	else if (strcmp(state, "no-gain") == 0)
		failed = prctl(65, 1, 0, 0, 0);
	else if (strcmp(state, "real-time") == 0) {
		struct sched_param p = {.sched_priority = 1};
		failed = mlockall(MCL_CURRENT | MCL_FUTURE) != 0 || sched_setscheduler(0, SCHED_FIFO, &p) != 0;
	}
	if (failed)
		return 3;
	if (strcmp(state, "execs") != 0 || count == 0) {
		printf("READY %d\n", getpid());
		fflush(stdout);
	}
	if (strcmp(state, "exits") == 0) {
		usleep(atoi(argv[2]));
		return plus_one(41) == 42 ? 42 : 41;
	}
	if (strcmp(state, "execs") == 0) {
		char number[32];
		snprintf(number, sizeof number, "%ld", count + 1);
		usleep(2000);
		if (plus_one(1) < 2)
			return 1;
		execl("/proc/self/exe", argv[0], state, number, (char *)NULL);
		return 1;
	}
	if (strcmp(state, "spawns") == 0) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, spawns, NULL) != 0)
			return 1;
	}
	if (strcmp(state, "strict") == 0) {
		prctl(PR_SET_SECCOMP, 1, 0, 0, 0);
		while (answer())
			;
		syscall(SYS_exit, 0);
	}
	while (answer())
		;
	return 0;
}
