// The checks of the torture target that are not about blocking system calls.
#define _GNU_SOURCE
#include "torture.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// ---- spin: registers, flags, red zone, floating point and vector state.

static long vector_level(void) {
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
		return 2;
	return __builtin_cpu_supports("avx") ? 1 : 0;
}

static void compare(struct check *c, const char *what, int i, const void *want, const void *got, size_t size) {
	if (memcmp(want, got, size) != 0)
		wrong(c, "%s %d has changed", what, i);
}

static void round_spin(struct check *c) {
	static const char *const names[15] = {"rax", "rbx", "rcx", "rdx", "rsi", "rbp", "r8", "r9",
	                                      "r10", "r11", "r12", "r13", "r14", "r15", "rdi"};
	struct state want, got;
	uint8_t *bytes = (uint8_t *)&want;
	memset(&want, 0, sizeof want);
	for (size_t i = 0; i < offsetof(struct state, x87); i++)
		bytes[i] = (uint8_t)(c->done * 31 + i * 7 + (i >> 8) + 1);
	want.x87[0] = 1.5 + (double)(c->done & 0xff), want.x87[1] = -2.25, want.x87[2] = 1e100;
	want.mxcsr = 0x3f80;       // round down, everything masked
	want.x87_control = 0x0b7f; // round up, everything masked
	want.carry = 1;
	memcpy(&got, &want, sizeof got); // what a level does not use stays equal
	got.carry = 0;
	spin_registers(&want, &got, vector_level(), 2000000);

	for (int i = 0; i < 15; i++)
		if (want.general[i] != got.general[i])
			wrong(c, "%s is %#lx instead of %#lx", names[i], (long)got.general[i], (long)want.general[i]);
	for (int i = 0; i < 32; i++)
		compare(c, "vector register", i, want.vector[i], got.vector[i], sizeof want.vector[i]);
	for (int i = 1; i < 8; i++)
		compare(c, "mask register", i, &want.mask[i], &got.mask[i], sizeof want.mask[i]);
	for (int i = 0; i < 16; i++)
		compare(c, "word of the red zone", i, &want.red_zone[i], &got.red_zone[i], sizeof want.red_zone[i]);
	for (int i = 0; i < 3; i++)
		compare(c, "x87 register", i, &want.x87[i], &got.x87[i], sizeof want.x87[i]);
	if (want.mxcsr != got.mxcsr)
		wrong(c, "mxcsr is %#x instead of %#x", got.mxcsr, want.mxcsr);
	if (want.x87_control != got.x87_control)
		wrong(c, "the x87 control word is %#x instead of %#x", got.x87_control, want.x87_control);
	if (want.carry != got.carry)
		wrong(c, "the carry flag is lost");
}

// ---- malloc: content of blocks that live through many calls.

static void round_malloc(struct check *c) {
	enum { blocks = 64 };
	static __thread unsigned char *block[blocks];
	static __thread size_t size[blocks];
	static __thread unsigned seed = 1;
	for (int n = 0; n < 2000; n++) {
		int i = rand_r(&seed) % blocks;
		for (size_t at = 0; at < size[i]; at += 61)
			if (block[i][at] != (unsigned char)(i + 1))
				wrong(c, "byte %zu of a block of %zu has changed", at, size[i]);
		size_t wanted = rand_r(&seed) % 4096 + 1;
		switch (rand_r(&seed) % 3) {
		case 0:
			free(block[i]);
			block[i] = malloc(wanted);
			break;
		case 1:
			free(block[i]);
			block[i] = calloc(1, wanted);
			break;
		default:
			block[i] = realloc(block[i], wanted);
		}
		if (block[i] == NULL) {
			wrong(c, "no memory");
			size[i] = 0;
			continue;
		}
		size[i] = wanted;
		memset(block[i], i + 1, wanted);
	}
}

// ---- dlopen: loads, uses and unloads a library.

const char *torture_library = "libm.so.6";

static void round_dlopen(struct check *c) {
	void *library = dlopen(torture_library, RTLD_NOW);
	if (library == NULL) {
		wrong(c, "dlopen: %s", dlerror());
		return;
	}
	double (*function)(double);
	*(void **)&function = dlsym(library, "cos");
	if (function == NULL || function(0) != 1)
		wrong(c, "cos(0) is not 1");
	if (dlclose(library) != 0)
		wrong(c, "dlclose: %s", dlerror());
	if (dlsym(RTLD_DEFAULT, "no_such_symbol_anywhere") != NULL)
		wrong(c, "dlsym finds what is not there");
	if (dlerror() == NULL)
		wrong(c, "dlerror has lost a message");
}

// ---- fork: a child for every round.

static void round_fork(struct check *c) {
	pid_t child = fork();
	if (child == 0)
		_exit(7);
	int status = 0;
	pid_t got = child < 0 ? -1 : waitpid(child, &status, 0);
	if (got < 0 || got != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7)
		wrong(c, "fork %d, waitpid %d, status %#x, errno %d", child, got, status, errno);
}

// ---- threads: created and joined all the time.

static void *plus_one(void *arg) { return (char *)arg + 1; }

static void round_threads(struct check *c) {
	pthread_t thread[4];
	for (long i = 0; i < 4; i++)
		if (pthread_create(&thread[i], NULL, plus_one, (void *)(1000 + i)) != 0)
			wrong(c, "pthread_create");
	for (long i = 0; i < 4; i++) {
		void *result = NULL;
		if (pthread_join(thread[i], &result) != 0 || (long)result != 1001 + i)
			wrong(c, "thread %ld gave %ld", i, (long)result);
	}
}

// ---- errno: belongs to the thread.

static void round_errno(struct check *c) {
	if (close(-1) != -1)
		wrong(c, "close(-1) succeeds");
	for (long i = 0; i < 200000; i++)
		__asm__ volatile("" : : "r"(i));
	if (errno != EBADF)
		wrong(c, "errno is %d instead of %d", errno, EBADF);
}

// ---- dispositions: what the process decided about signals stays so.

static void on_fpe(int number) { (void)number; }

static void round_dispositions(struct check *c) {
	static const struct {
		int signal;
		void (*handler)(int);
	} table[] = {{SIGTRAP, SIG_IGN}, {SIGSEGV, SIG_IGN}, {SIGUSR2, SIG_IGN}, {SIGFPE, on_fpe},
	             {SIGILL, SIG_DFL},  {SIGBUS, SIG_DFL},  {SIGSTOP, SIG_DFL}, {SIGCHLD, SIG_DFL}};
	static sigset_t mask;
	sigset_t now;
	stack_t stack;
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		struct sigaction action;
		if (c->done == 0 && table[i].signal != SIGSTOP) {
			memset(&action, 0, sizeof action);
			action.sa_handler = table[i].handler;
			sigaction(table[i].signal, &action, NULL);
		}
		sigaction(table[i].signal, NULL, &action);
		if (action.sa_handler != table[i].handler)
			wrong(c, "the disposition of signal %d has changed", table[i].signal);
	}
	if (c->done == 0)
		pthread_sigmask(SIG_BLOCK, NULL, &mask);
	pthread_sigmask(SIG_BLOCK, NULL, &now);
	for (int signal = 1; signal <= SIGRTMAX; signal++)
		if (sigismember(&mask, signal) != sigismember(&now, signal))
			wrong(c, "signal %d in the signal mask has changed", signal);
	if (sigaltstack(NULL, &stack) != 0 || stack.ss_flags != SS_DISABLE)
		wrong(c, "the alternate signal stack has changed");
	for (long i = 0; i < 100000; i++)
		__asm__ volatile("" : : "r"(i));
}

// ---- signals: one a millisecond, each with its number, to one thread that runs
// and never blocks. None may be lost, doubled or out of order.

static unsigned long sent, received;
static int stop_sending, receiving;
static struct check *counting;

static void on_counted(int number, siginfo_t *info, void *context) {
	(void)number, (void)context;
	unsigned long n = (unsigned long)info->si_value.sival_ptr;
	if (n != received + 1)
		wrong(counting, "signal %lu came after %lu", n, received);
	__atomic_store_n(&received, n, __ATOMIC_SEQ_CST);
}

static void round_receive(struct check *c) {
	if (c->done == 0) {
		counting = c;
		struct sigaction action;
		memset(&action, 0, sizeof action);
		action.sa_sigaction = on_counted;
		action.sa_flags = SA_SIGINFO | SA_RESTART;
		sigaction(SIGNAL_COUNTED, &action, NULL);
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGNAL_COUNTED);
		pthread_sigmask(SIG_UNBLOCK, &set, NULL);
		__atomic_store_n(&receiving, 1, __ATOMIC_SEQ_CST);
	}
	volatile unsigned long sum = 0;
	for (unsigned long i = 0; i < 100000; i++)
		sum += i;
	if (sum != 4999950000UL)
		wrong(c, "a sum is %lu", sum);
}

static void round_send(struct check *c) {
	struct timespec millisecond = {0, 1000000};
	nanosleep(&millisecond, NULL);
	if (!__atomic_load_n(&receiving, __ATOMIC_SEQ_CST) || __atomic_load_n(&stop_sending, __ATOMIC_SEQ_CST))
		return;
	union sigval value = {.sival_ptr = (void *)(sent + 1)};
	if (sigqueue(getpid(), SIGNAL_COUNTED, value) != 0) {
		if (errno != EAGAIN) // the queue is full: the receiver is stopped or starved
			wrong(c, "sigqueue: errno %d", errno);
		return;
	}
	__atomic_add_fetch(&sent, 1, __ATOMIC_SEQ_CST);
}

void settle_signals(unsigned long *all_sent, unsigned long *all_received) {
	struct timespec pause = {0, 10000000};
	__atomic_store_n(&stop_sending, 1, __ATOMIC_SEQ_CST);
	for (int i = 0; i < 200; i++) {
		nanosleep(&pause, NULL);
		*all_sent = __atomic_load_n(&sent, __ATOMIC_SEQ_CST);
		*all_received = __atomic_load_n(&received, __ATOMIC_SEQ_CST);
		if (i > 2 && *all_sent == *all_received)
			break;
	}
	__atomic_store_n(&stop_sending, 0, __ATOMIC_SEQ_CST);
}

struct check basic_checks[] = {
    {.mode = "spin", .name = "spin", .round = round_spin, .threads = 2},
    {.mode = "malloc", .name = "malloc", .round = round_malloc, .threads = 4},
    {.mode = "dlopen", .name = "dlopen", .round = round_dlopen, .threads = 2},
    {.mode = "fork", .name = "fork", .round = round_fork},
    {.mode = "threads", .name = "threads", .round = round_threads, .threads = 2},
    {.mode = "errno", .name = "errno", .round = round_errno, .threads = 2},
    {.mode = "dispositions", .name = "dispositions", .round = round_dispositions},
    {.mode = "signals", .name = "signals", .round = round_receive},
    {.mode = "signals", .name = "signals_sent", .round = round_send},
    {0},
};
