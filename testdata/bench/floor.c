// The least that a pause can cost: stops all threads of a process, reads their
// registers, writes five bytes of its code over themselves, and lets it go.
//
//	floor PID ADDRESS ROUNDS
//
// Nothing is looked at and nothing decided. Everything that can be done beforehand is:
// the threads are seized, the memory is open, and the priority is the one that hotpatch
// has in its pause, if it may have it. Prints the pauses in nanoseconds, one a line: from
// the first interrupt to the last detach. Exit status: 0, or 1 if something failed.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 8192 };
static pid_t tids[MOST];
static struct user_regs_struct regs[MOST];

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
	if (argc != 4)
		return 1;
	off_t addr = strtoull(argv[2], NULL, 16);
	int rounds = atoi(argv[3]);
	char path[64], code[5];
	snprintf(path, sizeof path, "/proc/%s/mem", argv[1]);
	int mem = open(path, O_RDWR);
	if (mem < 0 || pread(mem, code, sizeof code, addr) != sizeof code)
		die(path);
	for (int round = 0; round < rounds; round++) {
		int n = seize_all(argv[1]);
		struct sched_param fifo = {.sched_priority = 50}, other = {0};
		sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo);
		long began = now();
		for (int i = 0; i < n; i++)
			if (ptrace(PTRACE_INTERRUPT, tids[i], 0, 0) != 0)
				die("interrupt");
		for (int i = 0; i < n; i++) {
			int status;
			if (waitpid(tids[i], &status, __WALL) != tids[i] || !WIFSTOPPED(status))
				die("wait");
			if (ptrace(PTRACE_GETREGS, tids[i], 0, &regs[i]) != 0)
				die("getregs");
		}
		if (pwrite(mem, code, sizeof code, addr) != sizeof code)
			die("write");
		for (int i = 0; i < n; i++)
			if (ptrace(PTRACE_DETACH, tids[i], 0, 0) != 0)
				die("detach");
		long took = now() - began;
		sched_setscheduler(0, SCHED_OTHER, &other);
		printf("%ld\n", took);
		usleep(2000);
	}
	return 0;
}
