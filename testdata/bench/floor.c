// The least that a pause can cost: stops all threads of a process, reads their
// registers, writes five bytes over themselves at each of a number of addresses, and
// lets it go.
//
//	floor PID ROUNDS ADDRESS...
//
// Nothing is looked at and nothing decided. Everything that can be done beforehand is:
// the threads are seized, the memory is open, this program is locked in memory, the
// system calls have been made once in vain, and the priority is the one that hotpatch
// has in its pause, if it may have it. Prints the pauses in nanoseconds, one a line: from
// the first interrupt to the last detach, and behind it how much of it went into asking
// the threads to stop, waiting for them and reading registers, writing, and letting go.
// Exit status: 0, or 1 if something failed.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 8192, BYTES = 5 };
static pid_t tids[MOST];
static struct user_regs_struct regs[MOST];
static char code[16384][BYTES];

static void die(const char *what) {
	perror(what);
	exit(1);
}

static long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static int seize_all(const char *pid) {
	char path[64];
	snprintf(path, sizeof path, "/proc/%s/task", pid);
	DIR *d = opendir(path);
	if (d == NULL)
		die(path);
	int n = 0;
	for (struct dirent *e; (e = readdir(d)) != NULL && n < MOST;) {
		if (e->d_name[0] == '.')
			continue;
		tids[n] = atoi(e->d_name);
		if (ptrace(PTRACE_SEIZE, tids[n], 0, 0) != 0)
			die("seize");
		n++;
	}
	closedir(d);
	return n;
}

int main(int argc, char **argv) {
	if (argc < 4 || argc - 3 > (int)(sizeof code / BYTES))
		return 1;
	int rounds = atoi(argv[2]), writes = argc - 3;
	char path[64];
	snprintf(path, sizeof path, "/proc/%s/mem", argv[1]);
	int mem = open(path, O_RDWR);
	if (mem < 0)
		die(path);
	off_t *at = calloc(writes, sizeof *at);
	for (int i = 0; i < writes; i++) {
		at[i] = strtoull(argv[3 + i], NULL, 16);
		if (pread(mem, code[i], BYTES, at[i]) != BYTES)
			die(argv[3 + i]);
	}
	mlockall(MCL_CURRENT | MCL_FUTURE);
	for (int round = 0; round < rounds; round++) {
		int n = seize_all(argv[1]);
		struct sched_param fifo = {.sched_priority = 50}, other = {0};
		sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo);
		int status;
		ptrace(PTRACE_GETREGS, tids[0], 0, &regs[0]); // it runs: ESRCH
		ptrace(PTRACE_DETACH, tids[0], 0, 0);
		waitpid(tids[0], &status, __WALL | WNOHANG);

		long began = now();
		for (int i = 0; i < n; i++)
			if (ptrace(PTRACE_INTERRUPT, tids[i], 0, 0) != 0)
				die("interrupt");
		long asked = now();
		for (int i = 0; i < n; i++) {
			if (waitpid(tids[i], &status, __WALL) != tids[i] || !WIFSTOPPED(status))
				die("wait");
			if (ptrace(PTRACE_GETREGS, tids[i], 0, &regs[i]) != 0)
				die("getregs");
		}
		long stopped = now();
		for (int i = 0; i < writes; i++)
			if (pwrite(mem, code[i], BYTES, at[i]) != BYTES)
				die("write");
		long written = now();
		for (int i = 0; i < n; i++)
			if (ptrace(PTRACE_DETACH, tids[i], 0, 0) != 0)
				die("detach");
		long ended = now();
		sched_setscheduler(0, SCHED_OTHER, &other);
		printf("%ld %ld %ld %ld %ld\n", ended - began, asked - began, stopped - asked, written - stopped, ended - written);
		usleep(2000);
	}
	return 0;
}
