// A program that checks itself all the time, to find out what loading a library
// or stopping threads from outside does to a process that has not asked for it.
//
//	torture [-k] [-l LIBRARY] MODE...
//
// The modes, of which several may run at once, each in threads of its own:
//
//	spin          every register, flag, vector and control word, the red zone
//	malloc        contents of blocks in a storm of malloc, calloc, realloc, free
//	dlopen        LIBRARY (libm.so.6) loaded, used and unloaded all the time
//	fork          children made and waited for all the time
//	threads       threads made and joined all the time
//	errno         errno stays the thread's own
//	dispositions  signal dispositions (SIGTRAP and SIGSEGV ignored), mask, stack
//	signals       one signal a millisecond: none lost, added or out of order
//	syscalls      every blocking system call ends as it should: no EINTR
//
// The first wrong result is printed as "WRONG name: message" and ends the
// program with status 1; with -k it is only counted. On standard input:
//
//	?       "status name=ROUNDS ... wrong=N"
//	settle  stops the signals for a moment: "settled sent N received N wrong N"
#define _GNU_SOURCE
#include "torture.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int keep_going;
static unsigned long all_wrong;

void wrong(struct check *c, const char *format, ...) {
	char text[400];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	// One write, for this may run in a signal handler, and in every thread.
	char line[512];
	int length = snprintf(line, sizeof line, "WRONG %s: %s\n", c->name, text);
	ssize_t written = write(STDOUT_FILENO, line, length);
	(void)written;
	__atomic_add_fetch(&c->wrong, 1, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&all_wrong, 1, __ATOMIC_SEQ_CST);
	if (!keep_going)
		_exit(1);
}

static void *run(void *arg) {
	struct check *c = arg;
	for (;;) {
		c->round(c);
		__atomic_add_fetch(&c->done, 1, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

static struct check *running[64];
static int running_count;

// start starts the checks of a mode and gives how many there are.
static int start(struct check *checks, const char *mode) {
	int found = 0;
	for (struct check *c = checks; c->mode != NULL; c++) {
		if (strcmp(c->mode, mode) != 0)
			continue;
		found++;
		running[running_count++] = c;
		for (int i = 0; i < (c->threads > 0 ? c->threads : 1); i++) {
			pthread_t thread;
			if (pthread_create(&thread, NULL, run, c) != 0) {
				printf("no thread for %s\n", c->name);
				exit(2);
			}
		}
	}
	return found;
}

static void print_status(void) {
	printf("status");
	for (int i = 0; i < running_count; i++)
		printf(" %s=%lu", running[i]->name, __atomic_load_n(&running[i]->done, __ATOMIC_SEQ_CST));
	printf(" wrong=%lu\n", __atomic_load_n(&all_wrong, __ATOMIC_SEQ_CST));
}

int main(int argc, char **argv) {
	int option;
	while ((option = getopt(argc, argv, "kl:")) != -1) {
		switch (option) {
		case 'k': keep_going = 1; break;
		case 'l': torture_library = optarg; break;
		default: return 2;
		}
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (unshare(CLONE_NEWIPC) != 0)
		printf("not in an IPC namespace of its own\n"); // only root can
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGNAL_COUNTED);
	sigaddset(&set, SIGNAL_WAITED);
	sigaddset(&set, SIGNAL_SUSPEND);
	sigaddset(&set, SIGXCPU);
	pthread_sigmask(SIG_BLOCK, &set, NULL); // for all threads
	for (int i = optind; i < argc; i++) {
		if (start(basic_checks, argv[i]) + start(syscall_checks, argv[i]) == 0) {
			fprintf(stderr, "torture: no mode \"%s\"\n", argv[i]);
			return 2;
		}
	}
	printf("READY %d\n", getpid());
	char line[64];
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (strcmp(line, "?\n") == 0) {
			print_status();
		} else if (strcmp(line, "settle\n") == 0) {
			unsigned long sent = 0, received = 0;
			settle_signals(&sent, &received);
			printf("settled sent %lu received %lu wrong %lu\n", sent, received,
			       __atomic_load_n(&all_wrong, __ATOMIC_SEQ_CST));
		}
	}
	_exit(0); // the threads run on: nothing that they use may be taken down
}
