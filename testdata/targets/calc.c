// The calculator: functions of every sort that can or cannot be patched, each
// giving a known number, called on demand. Compile with calc_a.c, calc_b.c and
// calc_asm.S. Commands on standard input, each answered by one line:
//
//	call NAME X      calls through a pointer:     "NAME(X) = RESULT"
//	direct NAME X    calls directly (a few names): the same
//	thread NAME X    calls in a new thread, prints the same when it returns
//	gate close|open  calc_wait, and spin_while_closed, block while it is closed;
//	                 whoever begins to wait prints "waiting X"
//	load N NAME X    N threads call the function all the time
//	loaded           "load CALLS: RESULT xCOUNT ..." with the results that the
//	                 load saw since the last such question
//	signal NAME X    calls in a signal handler (SIGUSR1) of the main thread
//	show             "hidden H visible V tls T": the variables
//
// The names are the functions of `table` below.
#include "calc.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// OPAQUE keeps the compiler from knowing a value, and so from folding calls.
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))

// Variables that patches refer to.
static long hidden_counter = 1000;
long visible_counter = 2000;
__thread long tls_counter = 3000;

// ---- The gate.

static int gate_closed;
static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_opened = PTHREAD_COND_INITIALIZER;

long calc_wait(long x) {
	pthread_mutex_lock(&gate_lock);
	if (gate_closed)
		printf("waiting %ld\n", x);
	while (gate_closed)
		pthread_cond_wait(&gate_opened, &gate_lock);
	pthread_mutex_unlock(&gate_lock);
	return x;
}

static void gate(int closed) {
	pthread_mutex_lock(&gate_lock);
	__atomic_store_n(&gate_closed, closed, __ATOMIC_SEQ_CST);
	pthread_cond_broadcast(&gate_opened);
	pthread_mutex_unlock(&gate_lock);
	printf("gate %s\n", closed ? "closed" : "open");
}

// ---- The functions.

CALC_NOINLINE long add_one(long x) {
	OPAQUE(x);
	return x + 1;
}

CALC_NOINLINE static long times_two(long x) {
	OPAQUE(x);
	return x * 2;
}

__attribute__((weak, noinline)) long weak_fn(long x) {
	OPAQUE(x);
	return x + 7;
}

// Two names for one function.
CALC_NOINLINE long original_name(long x) {
	OPAQUE(x);
	return x + 9;
}
extern long alias_name(long x) __attribute__((alias("original_name")));

// Two functions with the same code. Linked with -ffunction-sections,
// -fuse-ld=gold and -Wl,--icf=all they have the same address as well.
CALC_NOINLINE long twin_a(long x) { return x * 5 + 11; }
CALC_NOINLINE long twin_b(long x) { return x * 5 + 11; }

// Chosen at load time (STT_GNU_IFUNC), where the C library can.
CALC_NOINLINE long chosen_generic(long x) {
	OPAQUE(x);
	return x + 13;
}
#ifdef __GLIBC__
CALC_NOINLINE long chosen_better(long x) {
	OPAQUE(x);
	return x + 14;
}
__attribute__((used)) static long (*resolve_chosen(void))(long) {
	__builtin_cpu_init();
	return __builtin_cpu_supports("sse2") ? chosen_better : chosen_generic;
}
long chosen(long x) __attribute__((ifunc("resolve_chosen")));
#else
long chosen(long x) { return chosen_generic(x); }
#endif

// What gcc -O2 makes clones of: .constprop (a parameter that is always 3),
// .isra (a structure of which one member is used) and .cold (an unlikely path).
struct pair {
	long used, unused;
};
CALC_NOINLINE static long clone_constprop(long x, long always3) {
	for (long i = 0; i < always3; i++)
		OPAQUE(x);
	return x + always3 * 10;
}
CALC_NOINLINE static long clone_isra(struct pair *p) {
	long x = p->used;
	OPAQUE(x);
	return x + 31;
}
__attribute__((cold, noinline)) long rare(long x) {
	fprintf(stderr, "rare %ld\n", x);
	return x;
}
CALC_NOINLINE long clone_cold(long x) {
	if (x < -12345)
		return rare(x) + 2 * rare(x + 1);
	OPAQUE(x);
	return x + 32;
}
CALC_NOINLINE long with_constprop(long x) { return clone_constprop(x, 3) + clone_constprop(x + 1, 3) - x - 31; }
CALC_NOINLINE long with_isra(long x) {
	struct pair p = {x, 1};
	OPAQUE(p.used);
	return clone_isra(&p);
}

// Blocks in the middle, well behind its first bytes.
CALC_NOINLINE long waits_inside(long x) {
	long a = x, b = x + 1, c = x + 2;
	OPAQUE(a);
	OPAQUE(b);
	OPAQUE(c);
	long waited = calc_wait(a + b + c);
	return waited - 2 * x - 3 + 21;
}

// Runs (takes the processor) while the gate is closed; the top frame.
CALC_NOINLINE long spin_while_closed(long x) {
	if (__atomic_load_n(&gate_closed, __ATOMIC_SEQ_CST))
		printf("waiting %ld\n", x);
	while (__atomic_load_n(&gate_closed, __ATOMIC_RELAXED))
		OPAQUE(x);
	return x + 22;
}

// Never returns, but calls another function all the time.
long forever_sum;
CALC_NOINLINE long forever(long x) {
	printf("waiting %ld\n", x);
	for (;;) {
		__atomic_add_fetch(&forever_sum, add_one(x), __ATOMIC_RELAXED);
		usleep(1000);
	}
}

CALC_NOINLINE long recursive(long x) {
	if (x <= 0)
		return 0;
	return 1 + recursive(x - 1);
}
CALC_NOINLINE long mutual_odd(long x);
CALC_NOINLINE long mutual_even(long x) { return x <= 0 ? 1 : mutual_odd(x - 1); }
CALC_NOINLINE long mutual_odd(long x) { return x <= 0 ? 0 : mutual_even(x - 1); }

// Ten integers and ten doubles: registers of both sorts, and the stack.
CALC_NOINLINE long many_parameters(long a, long b, long c, long d, long e, long f, long g, long h, long i, long j,
                                   double k, double l, double m, double n, double o, double p, double q, double r,
                                   double s, double t) {
	OPAQUE(a);
	return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j +
	       (long)(k + 2 * l + 3 * m + 4 * n + 5 * o + 6 * p + 7 * q + 8 * r + 9 * s + 10 * t);
}
CALC_NOINLINE static long parameters(long x) {
	return many_parameters(x, x + 1, x + 2, x + 3, x + 4, x + 5, x + 6, x + 7, x + 8, x + 9, 1, 2, 3, 4, 5, 6, 7, 8, 9,
	                       10);
}

// Use the variables, each by 1.
CALC_NOINLINE long count(long x) {
	hidden_counter++;
	visible_counter++;
	tls_counter++;
	return x + hidden_counter + visible_counter + tls_counter;
}

CALC_NOINLINE static long calls_at_3(long x) { return call_at_3(x, calc_wait); }

// ---- The table.

typedef long calc_function(long);

static struct {
	const char *name;
	calc_function *volatile function;
} table[] = {
#define ENTRY(name) {#name, name}
    ENTRY(add_one),       ENTRY(times_two),     ENTRY(weak_fn),        ENTRY(original_name),
    ENTRY(alias_name),    ENTRY(twin_a),        ENTRY(twin_b),         ENTRY(chosen),
    ENTRY(clone_cold),    ENTRY(with_constprop), ENTRY(with_isra),     ENTRY(waits_inside),
    ENTRY(spin_while_closed), ENTRY(forever),   ENTRY(recursive),      ENTRY(mutual_even),
    ENTRY(mutual_odd),    ENTRY(parameters),    ENTRY(count),          ENTRY(calls_at_3),
    ENTRY(a_same),        ENTRY(b_same),        ENTRY(short3),         ENTRY(short3_next),
    ENTRY(short3_padded), ENTRY(short3_int3),   ENTRY(short1_padded),  ENTRY(loop_to_5),
    ENTRY(branch_to_2),   ENTRY(call_at_9),     ENTRY(call_at_5),      ENTRY(endbr),
    ENTRY(rip_relative),  ENTRY(jump_away),     ENTRY(page_cross),     ENTRY(mod0),
    ENTRY(mod1),          ENTRY(mod2),          ENTRY(mod3),           ENTRY(mod4),
    ENTRY(mod5),          ENTRY(mod6),          ENTRY(mod7),           ENTRY(calc_wait),
#undef ENTRY
};

static calc_function *find(const char *name) {
	for (size_t i = 0; i < sizeof table / sizeof *table; i++)
		if (strcmp(table[i].name, name) == 0)
			return table[i].function;
	return NULL;
}

// Calls that the compiler sees, and may do what it likes with.
static int direct(const char *name, long x, long *result) {
#define DIRECT(f) \
	if (strcmp(name, #f) == 0) \
		return *result = f(x), 1
	DIRECT(add_one);
	DIRECT(times_two);
	DIRECT(weak_fn);
	DIRECT(original_name);
	DIRECT(alias_name);
	DIRECT(chosen);
	DIRECT(recursive);
	DIRECT(a_same);
	DIRECT(b_same);
	DIRECT(count);
#undef DIRECT
	return 0;
}

// ---- The commands.

struct job {
	char name[64];
	calc_function *function;
	long x;
};

static void *run_job(void *arg) {
	struct job *job = arg;
	long result = job->function(job->x);
	printf("%s(%ld) = %ld\n", job->name, job->x, result);
	free(job);
	return NULL;
}

enum { most_results = 8 };
static struct {
	pthread_mutex_t lock;
	unsigned long calls;
	struct {
		long result;
		unsigned long count;
	} seen[most_results];
} load = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *run_load(void *arg) {
	struct job *job = arg;
	for (;;) {
		long result = job->function(job->x);
		pthread_mutex_lock(&load.lock);
		load.calls++;
		for (int i = 0; i < most_results; i++) {
			if (load.seen[i].count > 0 && load.seen[i].result != result)
				continue;
			load.seen[i].result = result;
			load.seen[i].count++;
			break;
		}
		pthread_mutex_unlock(&load.lock);
	}
	return NULL;
}

static void print_load(void) {
	pthread_mutex_lock(&load.lock);
	printf("load %lu:", load.calls);
	load.calls = 0;
	for (int i = 0; i < most_results && load.seen[i].count > 0; i++) {
		printf(" %ld x%lu", load.seen[i].result, load.seen[i].count);
		load.seen[i].count = 0;
	}
	printf("\n");
	pthread_mutex_unlock(&load.lock);
}

static struct job signal_job;
static volatile long signal_result;

static void on_signal(int number) {
	(void)number;
	int saved = errno;
	signal_result = signal_job.function(signal_job.x);
	errno = saved;
}

static void start(void *(*run)(void *), const char *name, calc_function *function, long x) {
	struct job *job = malloc(sizeof *job);
	pthread_t thread;
	snprintf(job->name, sizeof job->name, "%s", name);
	job->function = function;
	job->x = x;
	if (pthread_create(&thread, NULL, run, job) != 0) {
		printf("no thread\n");
		exit(1);
	}
	pthread_detach(thread);
}

static void command(const char *line) {
	char name[64];
	long x, result, n;
	calc_function *function = NULL;
	if (strcmp(line, "gate close") == 0)
		gate(1);
	else if (strcmp(line, "gate open") == 0)
		gate(0);
	else if (strcmp(line, "loaded") == 0)
		print_load();
	else if (strcmp(line, "show") == 0)
		printf("hidden %ld visible %ld tls %ld\n", hidden_counter, visible_counter, tls_counter);
	else if (sscanf(line, "call %63s %ld", name, &x) == 2 && (function = find(name)) != NULL)
		printf("%s(%ld) = %ld\n", name, x, function(x));
	else if (sscanf(line, "direct %63s %ld", name, &x) == 2 && direct(name, x, &result))
		printf("%s(%ld) = %ld\n", name, x, result);
	else if (sscanf(line, "thread %63s %ld", name, &x) == 2 && (function = find(name)) != NULL)
		start(run_job, name, function, x);
	else if (sscanf(line, "signal %63s %ld", name, &x) == 2 && (function = find(name)) != NULL) {
		signal_job.function = function;
		signal_job.x = x;
		raise(SIGUSR1);
		printf("%s(%ld) = %ld\n", name, x, signal_result);
	} else if (sscanf(line, "load %ld %63s %ld", &n, name, &x) == 3 && (function = find(name)) != NULL) {
		for (long i = 0; i < n; i++)
			start(run_load, name, function, x);
		printf("loading %ld\n", n);
	} else
		printf("what is \"%s\"?\n", line);
}

int main(void) {
	setvbuf(stdout, NULL, _IOLBF, 0);
	struct sigaction action = {.sa_handler = on_signal};
	sigaction(SIGUSR1, &action, NULL);
	printf("READY %d\n", getpid());
	char line[256];
	while (fgets(line, sizeof line, stdin) != NULL) {
		line[strcspn(line, "\n")] = 0;
		command(line);
	}
	return 0;
}
