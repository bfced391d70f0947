// The process that scripts/bench stops:
//
//	target THREADS MODE FILE
//
// THREADS counts the main thread. In mode sleep all of them sleep. In mode spin all
// of them run, and in mode watch only the main thread does: each thread that runs
// looks at the clock all the time, and keeps the longest step that it saw, in
// nanoseconds, in FILE, eight bytes for each thread. Whoever wants to see the longest
// from now on writes zeros there.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile long *longest;
static int spinning;
static pthread_barrier_t there;

static long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void watch(int i) {
	for (long before = now();;) {
		long after = now();
		if (after - before > longest[i])
			longest[i] = after - before;
		before = after;
	}
}

static void *run(void *arg) {
	pthread_barrier_wait(&there);
	if (spinning)
		watch((long)arg);
	for (;;)
		sleep(1000);
}

int main(int argc, char **argv) {
	int threads = argc == 4 ? atoi(argv[1]) : 0;
	if (threads < 1)
		return 2;
	spinning = strcmp(argv[2], "spin") == 0;
	int fd = open(argv[3], O_RDWR);
	longest = mmap(NULL, threads * sizeof *longest, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || longest == MAP_FAILED)
		return 1;
	pthread_attr_t small;
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 64 << 10);
	pthread_barrier_init(&there, NULL, threads);
	for (long i = 1; i < threads; i++) {
		pthread_t thread;
		if (pthread_create(&thread, &small, run, (void *)i) != 0)
			return 1;
	}
	pthread_barrier_wait(&there);
	printf("READY %d\n", getpid());
	fflush(stdout);
	if (strcmp(argv[2], "sleep") != 0)
		watch(0);
	for (;;)
		sleep(1000);
}
