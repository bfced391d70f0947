// A program that is flooded with signals and counts them: none may be lost, doubled,
// added or out of order.
//
//	soak_signals
//
// Three floods of real-time signals with numbers, as fast as they are taken: to a
// handler on an alternative stack, to sigwaitinfo, and to a signalfd. A timer of 10 kHz,
// whose expirations and overruns must come to the time that went by. Children that end,
// one SIGCHLD each. And plus_one, to be replaced meanwhile.
//
// On standard input, "settle" stops the floods for a moment and prints
//
//	settled sent N received N children N sigchld N ticks N expected N wrong N
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { FLOODS = 3, MOST_PENDING = 256, PERIOD_NS = 100000 };
static struct flood {
	int signal;
	pthread_t receiver;
	int ready;
	unsigned long sent, received;
} floods[FLOODS];
static int hold, holding; // the senders stop; how many have
static unsigned long wrongs, children, sigchld, ticks;
static int64_t timer_began;

#define GET(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define SET(x, v) __atomic_store_n(&(x), v, __ATOMIC_SEQ_CST)
#define ADD(x, n) __atomic_add_fetch(&(x), n, __ATOMIC_SEQ_CST)

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void take(struct flood *f, uint64_t number) {
	if (number != f->received + 1)
		ADD(wrongs, 1);
	SET(f->received, number);
}

static void on_flood(int signal, siginfo_t *info, void *context) {
	(void)signal, (void)context;
	int error = errno;
	take(&floods[0], (uint64_t)info->si_value.sival_ptr);
	errno = error;
}

static void on_tick(int signal, siginfo_t *info, void *context) {
	(void)signal, (void)context;
	ADD(ticks, 1 + (unsigned long)info->si_overrun);
}

static void on_child(int signal) {
	(void)signal;
	ADD(sigchld, 1);
}

static void catch(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
	struct sigaction a;
	memset(&a, 0, sizeof a);
	a.sa_sigaction = handler;
	a.sa_flags = SA_SIGINFO | SA_RESTART | flags;
	sigaction(signal, &a, NULL);
}

static void unblock(int signal) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, signal);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void *handles(void *arg) {
	struct flood *f = arg;
	stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
	sigaltstack(&stack, NULL);
	catch(f->signal, on_flood, SA_ONSTACK);
	unblock(f->signal);
	SET(f->ready, 1);
	for (volatile unsigned long n = 0;; n++)
		;
	return arg;
}

static void *waits(void *arg) {
	struct flood *f = arg;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, f->signal);
	SET(f->ready, 1);
	for (;;) {
		siginfo_t info;
		if (sigwaitinfo(&set, &info) != f->signal)
			ADD(wrongs, 1); // EINTR too
		else
			take(f, (uint64_t)info.si_value.sival_ptr);
	}
	return arg;
}

static void *reads(void *arg) {
	struct flood *f = arg;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, f->signal);
	int fd = signalfd(-1, &set, 0);
	SET(f->ready, 1);
	for (;;) {
		struct signalfd_siginfo info[16];
		ssize_t n = read(fd, info, sizeof info);
		if (n <= 0 || n % sizeof *info != 0)
			ADD(wrongs, 1);
		for (ssize_t i = 0; i < n / (ssize_t)sizeof *info; i++)
			take(f, info[i].ssi_ptr);
	}
	return arg;
}

static void *sends(void *arg) {
	struct flood *f = arg;
	for (;;) {
		while (GET(hold)) {
			ADD(holding, 1);
			while (GET(hold))
				usleep(1000);
			ADD(holding, -1);
		}
		if (f->sent - GET(f->received) >= MOST_PENDING) {
			sched_yield();
			continue;
		}
		union sigval value = {.sival_ptr = (void *)(f->sent + 1)};
		int error = pthread_sigqueue(f->receiver, f->signal, value);
		if (error == 0)
			SET(f->sent, f->sent + 1);
		else if (error == EAGAIN)
			sched_yield();
		else
			ADD(wrongs, 1);
	}
	return arg;
}

static void *is_ticked(void *arg) {
	int signal = SIGRTMIN + 8;
	catch(signal, on_tick, 0);
	unblock(signal);
	struct sigevent event;
	memset(&event, 0, sizeof event);
	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = signal;
	event._sigev_un._tid = (int)syscall(SYS_gettid);
	timer_t timer;
	int64_t first = now() + 50 * PERIOD_NS;
	struct itimerspec spec = {{0, PERIOD_NS}, {first / 1000000000, first % 1000000000}};
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, TIMER_ABSTIME, &spec, NULL) != 0)
		abort();
	SET(timer_began, first);
	for (;;)
		pause();
	return arg;
}

static void *has_children(void *arg) {
	unblock(SIGCHLD);
	for (;;) {
		while (GET(hold))
			usleep(1000);
		unsigned long before = GET(sigchld);
		pid_t child = fork();
		if (child == 0)
			_exit(0);
		if (child < 0 || waitpid(child, NULL, 0) != child)
			ADD(wrongs, 1);
		ADD(children, 1);
		for (int64_t end = now() + 5000000000LL; GET(sigchld) == before && now() < end;)
			usleep(50);
		if (GET(sigchld) != before + 1)
			ADD(wrongs, 1);
	}
	return arg;
}

__attribute__((noinline)) void *plus_one(void *arg) { return (char *)arg + 1; }

static void *adds(void *arg) {
	for (;;) {
		if (plus_one(arg) != (char *)arg + 1)
			ADD(wrongs, 1);
		usleep(200);
	}
	return arg;
}

static void settle(void) {
	SET(hold, 1);
	unsigned long sent = 0, received = 0;
	for (int64_t end = now() + 10000000000LL; now() < end; usleep(1000)) {
		sent = received = 0;
		for (int i = 0; i < FLOODS; i++)
			sent += GET(floods[i].sent), received += GET(floods[i].received);
		if (GET(holding) == FLOODS && sent == received)
			break;
	}
	usleep(20000); // for what comes too much
	received = 0;
	for (int i = 0; i < FLOODS; i++)
		received += GET(floods[i].received);
	// A tick may be on its way: look until the two agree.
	long expected = 0, counted = 0;
	for (int64_t end = now() + 2000000000LL; now() < end; usleep(70)) {
		expected = (now() - GET(timer_began)) / PERIOD_NS + 1;
		counted = (long)GET(ticks);
		if (labs(expected - counted) <= 1)
			break;
	}
	printf("settled sent %lu received %lu children %lu sigchld %lu ticks %ld expected %ld wrong %lu\n", sent, received, GET(children),
	       GET(sigchld), counted, expected, GET(wrongs));
	SET(hold, 0);
}

static pthread_t begin(void *(*run)(void *), void *arg) {
	pthread_t thread;
	if (pthread_create(&thread, NULL, run, arg) != 0)
		abort();
	return thread;
}

int main(void) {
	setvbuf(stdout, NULL, _IOLBF, 0);
	sigset_t set;
	sigfillset(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	void *(*const receivers[FLOODS])(void *) = {handles, waits, reads};
	for (int i = 0; i < FLOODS; i++) {
		floods[i].signal = SIGRTMIN + 4 + i;
		floods[i].receiver = begin(receivers[i], &floods[i]);
		while (!GET(floods[i].ready))
			usleep(100);
		begin(sends, &floods[i]);
	}
	begin(is_ticked, NULL);
	begin(adds, NULL);
	struct sigaction a;
	memset(&a, 0, sizeof a);
	a.sa_handler = on_child;
	a.sa_flags = SA_RESTART | SA_NOCLDSTOP;
	sigaction(SIGCHLD, &a, NULL);
	begin(has_children, NULL);
	while (GET(timer_began) == 0)
		usleep(100);
	printf("READY %d\n", getpid());
	char line[64];
	while (fgets(line, sizeof line, stdin) != NULL)
		if (strcmp(line, "settle\n") == 0)
			settle();
	_exit(0);
}
