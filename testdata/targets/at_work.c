// A program whose threads do one thing each, by its argument, while plus_one is
// replaced:
//
//	storm     15 threads in malloc, calloc, realloc, aligned_alloc, dlopen and dlsym
//	handler   plus_one is called from a signal handler, thousands of times a second
//	cancel    threads are begun and cancelled, which sleep in plus_one's caller
//	guarded   eight threads change two variables under a mutex
//	writable  the page of plus_one is writable
//	chroot    it is in a chroot, whose directory is the second argument
//	parent    it makes a child that is the target, and looks for what it hears of it
//
// "?" on standard input is answered with "plus_one(1) = N wrong N rounds N".
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
static unsigned long rounds, wrong;
#define ADD(x) __atomic_add_fetch(&(x), 1, __ATOMIC_SEQ_CST)
long plus_one(long x);
__attribute__((noinline)) long plus_one(long x) { __asm__ volatile("" : "+r"(x)); return x + 1; }
static int is_right(long x, long got) { return got == x + 1 || got == x + 1000; }

static void *storm(void *arg) {
	for (unsigned n = 0;; n++) {
		size_t size = 16 + n % 5000;
		char *p = NULL;
		switch ((n + (uintptr_t)arg) % 6) {
		case 0: p = malloc(size); break;
		case 1: p = calloc(1, size); break;
		case 2: p = realloc(malloc(8), size); break;
		case 3: p = aligned_alloc(64, (size + 63) & ~63UL); break;
		case 4: {
			void *h = dlopen("libm.so.6", RTLD_NOW);
			if (h == NULL || dlsym(h, "cos") == NULL || dlclose(h) != 0)
				ADD(wrong);
			break;
		}
		default:
			if (dlsym(RTLD_DEFAULT, "plus_minus_nothing") != NULL)
				ADD(wrong);
		}
		if (p != NULL)
			memset(p, 1, size);
		free(p);
		if (!is_right(5, plus_one(5)))
			ADD(wrong);
		ADD(rounds);
	}
	return arg;
}

static void on_signal(int s) {
	(void)s;
	if (!is_right(9, plus_one(9)))
		ADD(wrong);
	ADD(rounds);
}
static void *raises(void *arg) {
	for (;;) {
		free(malloc(100));
		raise(SIGUSR1);
	}
	return arg;
}

static void *sleeps(void *arg) {
	for (;;) {
		if (!is_right(3, plus_one(3)))
			ADD(wrong);
		usleep(100000);
	}
	return arg;
}
static void *cancels(void *arg) {
	for (;;) {
		pthread_t thread;
		void *result = NULL;
		if (pthread_create(&thread, NULL, sleeps, NULL) != 0 || (usleep(300), pthread_cancel(thread)) != 0 || pthread_join(thread, &result) != 0 ||
		    result != PTHREAD_CANCELED)
			ADD(wrong);
		ADD(rounds);
	}
	return arg;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
long one, other;
static void *guards(void *arg) {
	for (;;) {
		pthread_mutex_lock(&lock);
		if (one != other)
			ADD(wrong);
		one += plus_one(0) > 0;
		other++;
		pthread_mutex_unlock(&lock);
		ADD(rounds);
	}
	return arg;
}

static pid_t child;
static unsigned long heard;
static void on_child(int s) {
	(void)s;
	ADD(heard);
}
static void *listens(void *arg) {
	for (;;) {
		int status;
		if (waitpid(child, &status, WUNTRACED | WCONTINUED) > 0 || errno != EINTR)
			ADD(wrong);
	}
	return arg;
}

static void begin(void *(*run)(void *), long n) {
	pthread_t thread;
	for (long i = 0; i < n; i++)
		if (pthread_create(&thread, NULL, run, (void *)i) != 0)
			exit(1);
}

int main(int argc, char **argv) {
	const char *what = argc > 1 ? argv[1] : "";
	char line[64];
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (strcmp(what, "storm") == 0)
		begin(storm, 15);
	if (strcmp(what, "handler") == 0) {
		signal(SIGUSR1, on_signal);
		begin(raises, 2);
	}
	if (strcmp(what, "cancel") == 0)
		begin(cancels, 3);
	if (strcmp(what, "guarded") == 0)
		begin(guards, 8);
	if (strcmp(what, "writable") == 0 && mprotect((void *)((uintptr_t)plus_one & ~4095UL), 4096, PROT_READ | PROT_WRITE | PROT_EXEC) != 0)
		return 3;
	if (strcmp(what, "chroot") == 0 && (chroot(argv[2]) != 0 || chdir("/") != 0))
		return 3;
	if (strcmp(what, "parent") == 0) {
		signal(SIGCHLD, on_child);
		if ((child = fork()) == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (;;) {
				if (!is_right(1, plus_one(1)))
					_exit(1);
				usleep(100);
			}
		}
		printf("child %d\n", child);
		begin(listens, 1);
	}
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL)
		printf("plus_one(1) = %ld wrong %lu rounds %lu\n", plus_one(1), wrong + heard, rounds);
	_exit(0);
}
