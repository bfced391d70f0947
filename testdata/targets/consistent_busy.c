// Functions that threads stay in, each in another way, until the variable held of
// a caller becomes 0. Compile with consistent_busy_asm.S and a program that calls
// functions by their names.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))

extern volatile int held;

// How often a thread has come to where it stays.
long arrivals;
static void arrive(void) { __atomic_add_fetch(&arrivals, 1, __ATOMIC_SEQ_CST); }
long arrived(long x) { return __atomic_load_n(&arrivals, __ATOMIC_SEQ_CST) - x; }

NOINLINE void nap(void) {
	int failed = usleep(1000);
	OPAQUE(failed); // no tail call: it is in the call chains
}

// Always on the stack, and never the top frame for long. x + 1.
NOINLINE long keeps_calling(long x) {
	OPAQUE(x);
	arrive();
	while (held)
		nap();
	return x + 1;
}

// Always the top frame, in the processor. x + 2.
NOINLINE long spins(long x) {
	long a = x, b = x + 1, c = x + 2;
	OPAQUE(a);
	OPAQUE(b);
	OPAQUE(c);
	arrive();
	while (held)
		OPAQUE(x);
	return a + b + c - 2 * x - 1;
}

// A call each 10 milliseconds, of 10 milliseconds; replaced is finishes. x + 3.
NOINLINE long finishes(long x) {
	OPAQUE(x);
	usleep(10000);
	return x + 3;
}
NOINLINE long finishes_again(long x) {
	arrive();
	while (held) {
		finishes(x);
		usleep(10000);
	}
	return finishes(x);
}

// Hidden behind assembly without unwind information. x + 4.
long spin_without_cfi(long x);
NOINLINE long hidden(long x) {
	OPAQUE(x);
	arrive();
	return spin_without_cfi(x) + 4;
}

// Its return address stays behind on the stack, in a frame that lives on and has
// never written there. left_behind gives x + 5, stale x + 6.
NOINLINE static void note(long x) { OPAQUE(x); }
NOINLINE long left_behind(long x) {
	note(x);
	OPAQUE(x);
	return x + 5;
}
NOINLINE static long far_down(long x) {
	volatile char room[2048];
	room[0] = 0;
	return left_behind(x) + room[0];
}
NOINLINE static long with_hole(long x) {
	volatile char hole[8192];
	hole[0] = 0;
	arrive();
	while (held)
		nap();
	return x + hole[0];
}
NOINLINE long stale(long x) {
	long got = far_down(x);
	return with_hole(got) + 1;
}

// Threads that make threads, in breed, which is replaced: there is always at least one
// in it, for each waits until the next has entered it. bred gives how many have begun
// and not ended, and their number so far if x is 1.
static long begun, ended;
NOINLINE void *breed(void *arg) {
	pthread_t next;
	int entered = 0;
	__atomic_add_fetch(&begun, 1, __ATOMIC_SEQ_CST);
	if (arg != NULL)
		__atomic_store_n((int *)arg, 1, __ATOMIC_SEQ_CST);
	usleep(300);
	if (held) {
		if (pthread_create(&next, NULL, breed, &entered) != 0)
			abort();
		pthread_detach(next);
		while (!__atomic_load_n(&entered, __ATOMIC_SEQ_CST))
			usleep(50);
	}
	usleep(300);
	__atomic_add_fetch(&ended, 1, __ATOMIC_SEQ_CST);
	return NULL;
}
long breeds(long n) {
	for (long i = 0; i < n; i++) {
		pthread_t first;
		if (pthread_create(&first, NULL, breed, NULL) != 0)
			abort();
		pthread_detach(first);
	}
	return n;
}
long bred(long x) {
	long e = __atomic_load_n(&ended, __ATOMIC_SEQ_CST), b = __atomic_load_n(&begun, __ATOMIC_SEQ_CST);
	return x == 1 ? b : b - e;
}

// Waits for a byte from a pipe, or for a client: nearly always inside the
// function that is replaced. reads and serves call it x times and give the sum of
// what it gave: 1 each time.
static int ends[2], listener;
NOINLINE long next_byte(long x) {
	char b;
	OPAQUE(x);
	return x + read(ends[0], &b, 1);
}
NOINLINE long reads(long x) {
	long sum = 0;
	arrive();
	for (long i = 0; i < x; i++) {
		sum += next_byte(0);
		usleep(100);
	}
	return sum;
}
long feeds(long x) {
	for (long i = 0; i < x; i++)
		if (write(ends[1], "", 1) != 1)
			abort();
	return x;
}
NOINLINE long next_client(long x) {
	OPAQUE(x);
	int client = accept(listener, NULL, NULL);
	if (client < 0)
		return -1000000; // an EINTR that nobody has asked for, for example
	close(client);
	return x + 1;
}
NOINLINE long serves(long x) {
	long sum = 0;
	arrive();
	for (long i = 0; i < x; i++) {
		sum += next_client(0);
		usleep(100);
	}
	return sum;
}
long port(long x) {
	struct sockaddr_in at;
	socklen_t size = sizeof at;
	getsockname(listener, (struct sockaddr *)&at, &size);
	return x + ntohs(at.sin_port);
}

// What a patch leaves behind in the program: a pointer, or what it points to.
// forgets clears both, and what was left on the stack meanwhile.
void *kept;
long forgets(long x) {
	volatile char room[8192];
	memset((char *)room, 0, sizeof room);
	if (kept >= sbrk(0) || (char *)kept < (char *)sbrk(0) - 1024 * 1024)
		kept = NULL; // not on the heap
	if (kept != NULL) {
		((void *volatile *)kept)[0] = NULL;
		((void *volatile *)kept)[100] = NULL;
		free(kept);
	}
	kept = NULL;
	return x + room[0];
}

// Chains of a known length: recurses calls itself x times, and waits at the bottom.
NOINLINE long recurses(long x) {
	OPAQUE(x);
	if (x <= 0) {
		arrive();
		while (held)
			nap();
		return 0;
	}
	x = recurses(x - 1);
	OPAQUE(x); // no loop
	return x + 1;
}

// In a signal handler on a stack of its own. x + 7.
static void on_signal(int number) {
	(void)number;
	arrive();
	while (held)
		nap();
}
NOINLINE long signalled(long x) {
	static __thread char room[65536];
	stack_t other = {.ss_sp = room, .ss_size = sizeof room}, off = {.ss_flags = SS_DISABLE};
	sigaltstack(&other, NULL);
	pthread_kill(pthread_self(), SIGUSR1);
	sigaltstack(&off, NULL);
	return x + 7;
}

__attribute__((constructor)) static void prepare(void) {
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	sigaction(SIGUSR1, &action, NULL);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (pipe(ends) != 0 || listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 8) != 0)
		abort();
}
