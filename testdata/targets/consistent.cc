// Operations that must be all old or all new: threads that call functions which
// belong together (consistent_set.h) through deep and recursive stacks, alloca,
// exceptions in flight, longjmp, and assembly without unwind information; and
// the same in signal handlers, on the thread's own stack and on another one.
// Compile with consistent_asm.S.
//
//	consistent THREADS
//
// A thread does an operation, which takes some microseconds, and pauses some
// milliseconds. One thread in sixteen sleeps inside for some milliseconds, so
// that there is nearly always somebody in the middle. On standard input:
//
//	?       "ops N old N new N mixed N wrong N handled N now V": operations by the
//	        versions they saw, wrong results, operations in signal handlers, and
//	        the version that an operation of the main thread sees now
//	fresh   waits until every thread has begun and ended an operation, and
//	        prints of those begun since: "fresh old N new N mixed N"
#include "consistent.h"

#include <alloca.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

namespace {

enum { most_threads = 1024 };

struct counts {
	std::atomic<unsigned long> old{0}, fresh{0}, mixed{0}, wrong{0}, handled{0};

	// add counts one operation.
	void add(const operation &o) {
		switch (o.versions) {
		case 1u << 1: old++; break;
		case 1u << 2: fresh++; break;
		default: mixed++;
		}
		if (o.wrong != 0)
			wrong++;
	}
};

counts all, since;
std::atomic<int> epoch{0};
std::atomic<int> ended[most_threads]; // the last epoch in which the thread has begun and ended an operation
int threads;

void sleep_for(long microseconds) {
	timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};
	while (nanosleep(&left, &left) != 0 && errno == EINTR)
		;
}

__attribute__((noinline)) void operate(operation *o, int kind) {
	int begun = epoch;
	o->versions = 0;
	o->wrong = 0;
	outer(o, kind);
	all.add(*o);
	if (begun == epoch)
		since.add(*o);
}

void on_timer(int) {
	int saved = errno;
	static std::atomic<int> next{0};
	operation o = {};
	o.depth = 5;
	int kind = next++ % kinds;
	// An exception must not pass a signal frame, but may fly above one.
	operate(&o, kind);
	all.handled++;
	errno = saved;
}

void *work(void *arg) {
	int number = static_cast<int>(reinterpret_cast<long>(arg));
	char *other = static_cast<char *>(malloc(256 * 1024));
	stack_t stack = {};
	stack.ss_sp = other;
	stack.ss_size = 256 * 1024;
	if (number % 2 == 0)
		sigaltstack(&stack, nullptr);
	if (number % 8 == 1 || number % 8 == 2) { // half of them have another stack
		sigevent event = {};
		event.sigev_notify = SIGEV_THREAD_ID;
		event.sigev_signo = SIGRTMIN;
		event._sigev_un._tid = gettid();
		timer_t timer;
		itimerspec every = {{0, 7000000 + number * 100000}, {0, 1000000}};
		if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, 0, &every, nullptr) != 0) {
			perror("timer");
			exit(1);
		}
	}
	unsigned random = static_cast<unsigned>(number) * 2654435761u + 1;
	for (;;) {
		random = random * 1664525u + 1013904223u;
		operation o = {};
		o.depth = static_cast<int>(random >> 16) % 60;
		o.sleep = number % 16 == 15 ? 500 : 0;
		int begun = epoch;
		operate(&o, static_cast<int>(random >> 24) % kinds);
		ended[number] = begun;
		sleep_for(o.sleep != 0 ? 40000 : 10000 + (random >> 20));
	}
	return nullptr;
}

void ask() {
	operation o = {};
	o.depth = 3;
	int kind = 0;
	unsigned seen = 0;
	for (; kind < kinds; kind++) {
		operate(&o, kind);
		seen |= o.versions;
	}
	const char *now = seen == 1u << 1 ? "old" : seen == 1u << 2 ? "new" : "mixed";
	unsigned long old = all.old, fresh = all.fresh, mixed = all.mixed;
	printf("ops %lu old %lu new %lu mixed %lu wrong %lu handled %lu now %s\n", old + fresh + mixed, old, fresh, mixed,
	       all.wrong.load(), all.handled.load(), now);
}

void ask_fresh() {
	since.old = since.fresh = since.mixed = 0;
	int begun = ++epoch;
	for (int i = 0; i < threads; i++)
		while (ended[i] < begun)
			sleep_for(1000);
	printf("fresh old %lu new %lu mixed %lu\n", since.old.load(), since.fresh.load(), since.mixed.load());
}

} // namespace

extern "C" {

__attribute__((noinline)) void linger(operation *o) {
	if (o->sleep != 0) {
		sleep_for(o->sleep);
		return;
	}
	for (volatile int i = 0; i < 2000; i = i + 1)
		;
}

__attribute__((noinline)) long descend(operation *o, long x, int depth) {
	if (depth <= 0)
		return inner1(o, x);
	size_t size = 16 + static_cast<size_t>(depth) % 7 * 48;
	char *room = static_cast<char *>(alloca(size));
	memset(room, depth, size);
	long got = descend(o, x, depth - 1) + 1;
	for (size_t i = 0; i < size; i++)
		o->wrong += room[i] != static_cast<char>(depth);
	return got;
}

__attribute__((noinline)) long through(operation *o, long x) {
	struct counted {
		operation *o;
		~counted() { linger(o); } // runs while the exception flies
	} c{o};
	return inner2(o, x) + 1;
}

__attribute__((noinline)) void leap(operation *o, long x) { longjmp(o->env, static_cast<int>(x)); }

__attribute__((noinline)) long cross(operation *o, long x) { return inner4(o, x) + 1; }

} // extern "C"

// The functions that are replaced, as they are in the beginning.
#define SET_VERSION 1
#define call_inner1 inner1
#define call_inner3 inner3
#define call_inner4 inner4
#include "consistent_set.h"

int main(int argc, char **argv) {
	threads = argc > 1 ? atoi(argv[1]) : 64;
	if (threads < 1 || threads > most_threads)
		return 2;
	setvbuf(stdout, nullptr, _IOLBF, 0);
	struct sigaction action = {};
	action.sa_handler = on_timer;
	action.sa_flags = SA_ONSTACK | SA_RESTART;
	sigaction(SIGRTMIN, &action, nullptr);
	for (long i = 0; i < threads; i++) {
		pthread_t thread;
		if (pthread_create(&thread, nullptr, work, reinterpret_cast<void *>(i)) != 0) {
			perror("pthread_create");
			return 1;
		}
	}
	printf("READY %d\n", getpid());
	char line[64];
	while (fgets(line, sizeof line, stdin) != nullptr) {
		if (line[0] == '?')
			ask();
		else if (strncmp(line, "fresh", 5) == 0)
			ask_fresh();
	}
	return 0;
}
