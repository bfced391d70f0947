// Functions that threads stay in on unusual stacks, or with their return address in
// an unusual place, until the variable held of a caller becomes 0. Compile with
// consistent_odd_asm.S and a program that calls functions by their names.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))

extern volatile int held;
enum { page = 4096 };

long arrivals;
NOINLINE long stays(long x) { // never the top frame for long
	__atomic_add_fetch(&arrivals, 1, __ATOMIC_SEQ_CST);
	while (held) {
		int failed = usleep(1000);
		OPAQUE(failed);
	}
	return x;
}
long arrived(long x) { return __atomic_load_n(&arrivals, __ATOMIC_SEQ_CST) - x; }

// The only return address into it is in a register. x + 1, x + 2.
long spin_in_register(long x), spin_in_register_with_cfi(long x);
NOINLINE long in_register(long x) {
	__atomic_add_fetch(&arrivals, 1, __ATOMIC_SEQ_CST);
	x = spin_in_register(x);
	OPAQUE(x);
	return x + 1;
}
NOINLINE long in_register_with_cfi(long x) {
	__atomic_add_fetch(&arrivals, 1, __ATOMIC_SEQ_CST);
	x = spin_in_register_with_cfi(x);
	OPAQUE(x);
	return x + 2;
}

// The return address is at an odd place of the stack. x + 3.
long skewed(long x);
void skewed_arrives(void) { __atomic_add_fetch(&arrivals, 1, __ATOMIC_SEQ_CST); }

// A page of the stack is another mapping than the rest: it is locked, as for keys. x + 4.
NOINLINE static long deeper(long x) {
	volatile char room[3 * page];
	room[0] = 0;
	return stays(x) + room[0];
}
NOINLINE long locked(long x) {
	volatile char room[3 * page];
	uintptr_t at = (uintptr_t)room & -page;
	if (mlock((void *)(at - page), 2 * page) != 0)
		abort();
	x = deeper(x) + 4;
	munlock((void *)(at - page), 2 * page);
	return x;
}

// Runs a function on a stack that the program has made for a thread.
struct job { long (*volatile call)(long); long x; };
static void *run(void *arg) {
	struct job *job = arg;
	pthread_setname_np(pthread_self(), "worker");
	job->x = job->call(job->x);
	return NULL;
}
static long on_stack(void *stack, size_t size, long (*call)(long), long x) {
	pthread_attr_t attr;
	pthread_t thread;
	struct job job = {call, x};
	if (pthread_attr_init(&attr) != 0 || pthread_attr_setstack(&attr, stack, size) != 0 || pthread_create(&thread, &attr, run, &job) != 0)
		abort();
	pthread_join(thread, NULL);
	return job.x;
}
NOINLINE long inside(long x) {
	OPAQUE(x);
	return stays(x) + 5;
}
long on_static_stack(long x) {
	static char stack[256 * 1024] __attribute__((aligned(page)));
	return on_stack(stack, sizeof stack, inside, x);
}
long on_heap_stack(long x) { return on_stack(aligned_alloc(page, 100 * 1024), 100 * 1024, inside, x); }
long on_growing_stack(long x) {
	const size_t size = 64 * page, begin = 16 * page; // room for the thread's own data
	char *low = mmap(NULL, 1024 * page + size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(low, 1024 * page + size);
	char *stack = mmap(low + 1024 * page + size - begin, begin, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	if (stack == MAP_FAILED)
		abort();
	return on_stack(stack + begin - size, size, inside, x);
}

// In a handler on another stack; the thread's own stack has pages that may not be
// touched although they are in its mapping, as glibc 2.42 makes them. x + 5.
static void on_signal(int number) {
	(void)number;
	stays(0);
}
static void signal_on(void *stack, size_t size) {
	stack_t other = {.ss_sp = stack, .ss_size = size}, off = {.ss_flags = SS_DISABLE};
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
	sigaction(SIGUSR1, &action, NULL);
	sigaltstack(&other, NULL);
	pthread_kill(pthread_self(), SIGUSR1);
	sigaltstack(&off, NULL);
}
NOINLINE long signalled(long x) {
	char *other = malloc(64 * 1024);
	signal_on(other, 64 * 1024);
	free(other);
	return x + 5;
}
long on_guarded_stack(long x) {
	const size_t size = 64 * page;
	char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const int guard_install = 102; // MADV_GUARD_INSTALL, Linux 6.13
	if (madvise(stack, 4 * page, guard_install) != 0)
		return -1;
	return on_stack(stack, size, signalled, x);
}

// A coroutine that waits in a signal handler on a third stack, while it is in the
// function. The thread that runs it is not. x + 5.
static ucontext_t back, there;
static long passed;
static void body(void) { passed = signalled(passed); }
long in_coroutine(long x) {
	const size_t size = 64 * page;
	char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	getcontext(&there);
	there.uc_stack.ss_sp = stack;
	there.uc_stack.ss_size = size;
	there.uc_link = &back;
	passed = x;
	makecontext(&there, body, 0);
	swapcontext(&back, &there);
	munmap(stack, size);
	return passed;
}

// The function's caller is suspended in a coroutine's favour: the thread runs the
// coroutine, and returns into the function when that ends. x + 6.
static void waits(void) { passed = stays(passed); }
NOINLINE long resumes(long x) {
	char *stack = malloc(64 * 1024);
	getcontext(&there);
	there.uc_stack.ss_sp = stack;
	there.uc_stack.ss_size = 64 * 1024;
	there.uc_link = &back;
	passed = x;
	makecontext(&there, waits, 0);
	swapcontext(&back, &there);
	free(stack);
	return passed + 6;
}

// A thread of a kind that only the kernel knows, without a control block of its
// own: it shares that of its maker. x + 5.
static int ended;
static int bare_run(void *arg) {
	prctl(PR_SET_NAME, "worker");
	struct job *job = arg;
	job->x = inside(job->x);
	__atomic_store_n(&ended, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause(); // exit would end as glibc's thread does
}
long bare_thread(long x) {
	static struct job job;
	char *stack = mmap(NULL, 64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	job = (struct job){NULL, x};
	ended = 0;
	if (clone(bare_run, stack + 64 * page, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM, &job) < 0)
		abort();
	while (!__atomic_load_n(&ended, __ATOMIC_SEQ_CST))
		usleep(1000);
	return job.x;
}

// Memory that nobody else can read. x, or -1 if the kernel has none.
long keeps_secret(long x) {
	int fd = syscall(447, 0); // memfd_secret, Linux 5.14
	if (fd < 0 || ftruncate(fd, page) != 0)
		return -1;
	char *secret = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (secret == MAP_FAILED)
		return -1;
	*secret = 1;
	close(fd);
	return x;
}

// Another process that runs in the same memory. x + 5.
static int shared_run(void *arg) {
	struct job *job = arg;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	job->x = inside(job->x);
	return 0;
}
long shares_memory(long x) {
	struct job job = {NULL, x};
	char *stack = mmap(NULL, 64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int pid = clone(shared_run, stack + 64 * page, CLONE_VM | SIGCHLD, &job);
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		abort();
	munmap(stack, 64 * page);
	return job.x;
}
// The same for a child of vfork, in the function; its parent waits in the kernel. x + 7.
NOINLINE long vforks(long x) {
	volatile long got = x;
	int pid = vfork();
	if (pid == 0) {
		got = stays(got) + 7;
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		abort();
	return got;
}
