// The least that borrowing a thread can cost: stops one thread, sends it to
// `bare_stub` of the target (bare.c), which makes a thread that ends at once and
// restores the borrowed one, and lets it go.
//
//	borrow TID SLOTS STUB
//
// SLOTS and STUB are addresses in hexadecimal. Like hotpatch, it writes the thread's
// registers for the stub to restore, and does not wait for it.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what) {
	perror(what);
	exit(1);
}

int main(int argc, char **argv) {
	if (argc != 4)
		return 1;
	pid_t tid = atoi(argv[1]);
	off_t slots = strtoull(argv[2], NULL, 16);
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/mem", tid);
	int mem = open(path, O_RDWR), status;
	struct user_regs_struct r = {0};
	if (mem < 0)
		die(path);
	mlockall(MCL_CURRENT | MCL_FUTURE);
	struct sched_param fifo = {.sched_priority = 50};
	sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &fifo);
	if (ptrace(PTRACE_SEIZE, tid, 0, 0) != 0)
		die("seize");
	if (ptrace(PTRACE_INTERRUPT, tid, 0, 0) != 0 || waitpid(tid, &status, __WALL) != tid || ptrace(PTRACE_GETREGS, tid, 0, &r) != 0)
		die("stop");
	unsigned long long saved[] = {r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.rip};
	if (pwrite(mem, saved, sizeof saved, slots) != sizeof saved)
		die("write");
	r.rip = strtoull(argv[3], NULL, 16);
	if (ptrace(PTRACE_SETREGS, tid, 0, &r) != 0 || ptrace(PTRACE_DETACH, tid, 0, 0) != 0)
		die("let go");
	return 0;
}
