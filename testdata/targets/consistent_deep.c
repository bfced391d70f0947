// Threads that sleep with deep stacks, none of them in `replaced`:
//
//	consistent_deep THREADS FRAMES BYTES
//
// Each thread is FRAMES calls deep, with BYTES bytes of stack in all. Ready when
// all are there.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int frames, bytes;
static pthread_barrier_t there;

__attribute__((noinline)) long replaced(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}

__attribute__((noinline)) static long down(int depth) {
	char room[bytes / frames];
	memset(room, depth, sizeof room);
	if (depth <= 1) {
		pthread_barrier_wait(&there);
		for (;;)
			pause();
	}
	long got = down(depth - 1);
	return got + room[depth % sizeof room];
}

static void *run(void *arg) {
	down(frames);
	return arg;
}

int main(int argc, char **argv) {
	int threads = argc == 4 ? atoi(argv[1]) : 0;
	frames = argc == 4 ? atoi(argv[2]) : 0;
	bytes = argc == 4 ? atoi(argv[3]) : 0;
	if (threads < 1 || frames < 1 || bytes < frames)
		return 2;
	pthread_barrier_init(&there, NULL, threads + 1);
	for (int i = 0; i < threads; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, run, NULL) != 0)
			return 1;
	}
	pthread_barrier_wait(&there);
	printf("READY %d\n", getpid());
	fflush(stdout);
	for (;;) {
		replaced(1);
		usleep(100000);
	}
}
