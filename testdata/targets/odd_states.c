// A program in a state that few processes are in, and that checks itself in it.
//
//	odd_states STATE [NUMBER]
//
//	threads N       N sleeping threads
//	mappings N      as many mappings as it may have, but N
//	uring           waits in io_uring_enter, for events that come too late, and the
//	                kernel's workers of its ring wait too
//	userfault       a thread of its own fills its pages when they are touched
//	resethand       a flood of signals whose handlers are good for one (SA_RESETHAND),
//	                nest (SA_NODEFER) and disarm their stack (SS_AUTODISARM)
//	setuid          all threads change their user all the time, and back
//	closes          closes every descriptor all the time, and opens a file of its own
//	full            has no file descriptor left
//	filters N       forbids nearly everything to all its threads (seccomp) after N us, or
//	                if N is -1 when it is told so by "f"
//	small-stacks    threads have stacks of 16 KiB if nobody says otherwise
//	sealed          its code may not be remapped any more (mseal); status 3: no such kernel
//	anonymous       its code was copied to memory of no file, as for large pages
//	cancels         threads are begun and cancelled all the time
//	idle            a thread runs only when nobody else wants to (SCHED_IDLE)
//	locked          all memory is locked, now and in future
//
// Answers "?" on standard input with "plus_one(1) = 2 rounds N wrong N".
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif

static unsigned long rounds, wrongs;
#define ADD(x) __atomic_add_fetch(&(x), 1, __ATOMIC_SEQ_CST)

static void wrong(const char *what) {
	int error = errno;
	ADD(wrongs);
	dprintf(1, "WRONG %s (errno %d)\n", what, error);
}

__attribute__((noinline)) long plus_one(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}

static void begin(void *(*run)(void *), size_t stack) {
	pthread_t thread;
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	if (stack > 0)
		pthread_attr_setstacksize(&attr, stack);
	if (pthread_create(&thread, &attr, run, NULL) != 0) {
		printf("no thread\n");
		exit(3);
	}
}

static void *sleeps(void *arg) {
	for (;;)
		pause();
	return arg;
}

static void use_up_mappings(long left) {
	static void *last[1000];
	long n = 0;
	for (;; n++) { // neighbours of the same protection would be one
		void *p = mmap(NULL, 4096, n % 2 ? PROT_READ : PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			break;
		last[n % 1000] = p;
	}
	for (long i = 0; i < left; i++)
		munmap(last[(n - 1 - i) % 1000], 4096);
}

// ---- io_uring, by its system calls alone.

static struct {
	int fd;
	unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
} ring;

static void make_ring(void) {
	struct io_uring_params p;
	memset(&p, 0, sizeof p);
	ring.fd = (int)syscall(SYS_io_uring_setup, 8, &p);
	if (ring.fd < 0)
		exit(3);
	char *sq = mmap(NULL, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING);
	char *cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof *ring.cqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_CQ_RING);
	ring.sqes = mmap(NULL, p.sq_entries * sizeof *ring.sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQES);
	ring.sq_tail = (unsigned *)(sq + p.sq_off.tail), ring.sq_mask = (unsigned *)(sq + p.sq_off.ring_mask), ring.sq_array = (unsigned *)(sq + p.sq_off.array);
	ring.cq_head = (unsigned *)(cq + p.cq_off.head), ring.cq_tail = (unsigned *)(cq + p.cq_off.tail), ring.cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
	ring.cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
}

static void put(const struct io_uring_sqe *e) {
	unsigned tail = *ring.sq_tail, i = tail & *ring.sq_mask;
	ring.sqes[i] = *e;
	ring.sq_array[i] = i;
	__atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
}

static void *waits_for_ring(void *arg) {
	static int quiet[2];
	static char byte;
	if (pipe(quiet) != 0)
		exit(1);
	// A worker of the kernel's reads from a pipe into which nobody writes.
	struct io_uring_sqe e = {.opcode = IORING_OP_READ, .flags = IOSQE_ASYNC, .fd = quiet[0], .addr = (uintptr_t)&byte, .len = 1, .off = (uint64_t)-1};
	put(&e);
	syscall(SYS_io_uring_enter, ring.fd, 1, 0, 0, NULL, 0);
	for (;;) {
		struct __kernel_timespec t = {0, 30000000};
		struct io_uring_sqe timeout = {.opcode = IORING_OP_TIMEOUT, .fd = -1, .addr = (uintptr_t)&t, .len = 1, .off = 0, .user_data = 7};
		put(&timeout);
		// Both in one call would say how many were submitted, and not that the wait
		// was cut short.
		if (syscall(SYS_io_uring_enter, ring.fd, 1, 0, 0, NULL, 0) != 1)
			wrong("submission");
		if (syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
			wrong("wait");
		unsigned head = *ring.cq_head;
		while (head == __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE)) { // not without an event
			wrong("no event");
			syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
		}
		struct io_uring_cqe c = ring.cqes[head & *ring.cq_mask];
		if (c.user_data != 7 || c.res != -ETIME)
			wrong("event");
		__atomic_store_n(ring.cq_head, head + 1, __ATOMIC_RELEASE);
		ADD(rounds);
	}
	return arg;
}

// ---- Pages that are filled when they are touched.

enum { PAGES = 64 };
static int faults;
static char *lazy;

static void *fills(void *arg) {
	static char page[4096] __attribute__((aligned(4096)));
	struct uffd_msg m;
	for (;;) {
		if (read(faults, &m, sizeof m) != sizeof m) {
			wrong("read of faults");
			continue;
		}
		usleep(200); // so that somebody waits
		uintptr_t at = m.arg.pagefault.address & ~4095UL;
		memset(page, (int)((at - (uintptr_t)lazy) / 4096 + 1), sizeof page);
		struct uffdio_copy copy = {.dst = at, .src = (uintptr_t)page, .len = 4096};
		while (ioctl(faults, UFFDIO_COPY, &copy) != 0 && errno == EAGAIN)
			copy.copy = 0;
	}
	return arg;
}

static void *touches(void *arg) {
	for (;;) {
		for (int i = 0; i < PAGES; i++)
			if (*(volatile char *)(lazy + 4096 * i + 100) != (char)(i + 1))
				wrong("page");
		if (madvise(lazy, PAGES * 4096, MADV_DONTNEED) != 0)
			wrong("madvise");
		ADD(rounds);
	}
	return arg;
}

static void make_lazy(void) {
	faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = {.api = UFFD_API};
	lazy = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register r = {.range = {(uintptr_t)lazy, PAGES * 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (faults < 0 || ioctl(faults, UFFDIO_API, &api) != 0 || ioctl(faults, UFFDIO_REGISTER, &r) != 0)
		exit(3);
}

// ---- Handlers for one signal.

static volatile unsigned long handled, done_with, depth;

static void once(int signal);
static void arm(void) {
	struct sigaction a;
	memset(&a, 0, sizeof a);
	a.sa_handler = once;
	a.sa_flags = SA_RESETHAND | SA_NODEFER | SA_ONSTACK | SA_RESTART;
	sigaction(SIGUSR1, &a, NULL);
}
static void once(int signal) {
	struct sigaction now;
	stack_t stack;
	sigaction(signal, NULL, &now);
	if (now.sa_handler != SIG_DFL)
		wrong("the handler is still there");
	if (sigaltstack(NULL, &stack) != 0 || !(stack.ss_flags & SS_DISABLE))
		wrong("the stack is still there");
	arm();
	if (++handled % 8 == 0 && depth == 0) { // within itself, on the same stack
		depth++;
		raise(signal);
		depth--;
	}
	if (depth == 0)
		done_with++;
}

static pthread_t handler_thread;
static void *handles(void *arg) {
	stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16, .ss_flags = (int)SS_AUTODISARM};
	if (sigaltstack(&stack, NULL) != 0)
		exit(3);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	for (unsigned long n = 1;; n++) {
		pthread_sigmask(SIG_UNBLOCK, &set, NULL);
		for (volatile int i = 0; i < 1000; i++)
			;
		stack_t now;
		if (sigaltstack(NULL, &now) != 0 || now.ss_sp != stack.ss_sp || now.ss_size != stack.ss_size || (unsigned)now.ss_flags != SS_AUTODISARM)
			wrong("the stack has changed");
		ADD(rounds);
	}
	return arg;
}
static void *raises(void *arg) {
	for (;;) {
		unsigned long before = done_with;
		pthread_kill(handler_thread, SIGUSR1);
		for (int i = 0; done_with == before; i++) {
			if (i == 10000) {
				wrong("a signal is lost");
				break;
			}
			usleep(i < 100 ? 10 : 1000);
		}
	}
	return arg;
}

// ---- Users.

static void *changes_user(void *arg) {
	for (;;) { // glibc has every thread do it, by a signal
		if (setresuid(-1, 65534, -1) != 0 || geteuid() != 65534)
			wrong("not nobody");
		if (setresuid(-1, 0, -1) != 0 || geteuid() != 0)
			wrong("not root");
		ADD(rounds);
		usleep(300);
	}
	return arg;
}

// ---- Descriptors.

static const char mine[] = "what this program has written, and nobody else\n";

static void *closes(void *arg) {
	char text[200];
	for (;;) {
		syscall(SYS_close_range, 3, ~0U, 0);
		int fds[4];
		for (int i = 0; i < 4; i++) {
			fds[i] = open("mine", O_RDWR);
			if (fds[i] < 0) {
				wrong("open");
				return arg;
			}
		}
		for (volatile int i = 0; i < 20000; i++)
			;
		for (int i = 0; i < 4; i++) {
			ssize_t n = read(fds[i], text, sizeof text);
			if (n != sizeof mine - 1 || memcmp(text, mine, n) != 0)
				wrong("content of the file");
		}
		ADD(rounds);
	}
	return arg;
}

// ---- A policy that comes late.

static void forbid(void) {
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 7, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 6, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 5, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_nanosleep, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pause, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof f / sizeof *f, f};
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0)
		exit(3);
}

static long forbid_after;
static int at_work; // main makes no other calls any more than are allowed
static void *forbids(void *arg) {
	while (!__atomic_load_n(&at_work, __ATOMIC_SEQ_CST))
		;
	if (forbid_after > 0)
		usleep(forbid_after);
	forbid();
	for (;;)
		pause();
	return arg;
}

// ---- Code.

static void code_range(uintptr_t *from, uintptr_t *to) {
	extern char __executable_start[], etext[];
	*from = ((uintptr_t)plus_one) & ~4095UL;
	*to = ((uintptr_t)etext + 4095) & ~4095UL;
	(void)__executable_start;
}

// copy_code is what programs do to have large pages for their code.
static void copy_code(void) {
	uintptr_t from, to;
	code_range(&from, &to);
	from = (uintptr_t)copy_code & ~4095UL;
	if (((uintptr_t)plus_one & ~4095UL) < from)
		from = (uintptr_t)plus_one & ~4095UL;
	size_t size = to - from;
	void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memcpy(copy, (void *)from, size);
	mprotect(copy, size, PROT_READ | PROT_EXEC);
	if (mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)from) == MAP_FAILED)
		exit(3);
}

static void seal_code(void) {
	uintptr_t from, to;
	code_range(&from, &to);
	if (syscall(462, from, to - from, 0) != 0) // mseal
		exit(3);
}

// ---- Threads.

static void *is_cancelled(void *arg) {
	for (;;)
		usleep(100000);
	return arg;
}
static void cancel_one(void) {
	pthread_t thread;
	void *result;
	if (pthread_create(&thread, NULL, is_cancelled, NULL) != 0 || pthread_cancel(thread) != 0 ||
	    pthread_join(thread, &result) != 0 || result != PTHREAD_CANCELED)
		wrong("cancel");
	ADD(rounds);
}
static void *cancels(void *arg) {
	for (;;)
		cancel_one();
	return arg;
}

static void *idles(void *arg) {
	struct sched_param p = {0};
	if (sched_setscheduler(0, SCHED_IDLE, &p) != 0)
		exit(3);
	for (;;) {
		if (plus_one(1) < 2)
			wrong("plus_one");
		ADD(rounds);
	}
	return arg;
}

int main(int argc, char **argv) {
	const char *state = argc > 1 ? argv[1] : "";
	long number = argc > 2 ? atol(argv[2]) : 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
#define IS(name) (strcmp(state, name) == 0)
	if (IS("threads")) {
		for (long i = 0; i < number; i++)
			begin(sleeps, 16384);
	} else if (IS("mappings")) {
		use_up_mappings(number);
	} else if (IS("uring")) {
		make_ring();
		begin(waits_for_ring, 0);
	} else if (IS("userfault")) {
		make_lazy();
		begin(fills, 0);
		begin(touches, 0);
	} else if (IS("resethand")) {
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		pthread_sigmask(SIG_BLOCK, &set, NULL);
		arm();
		pthread_create(&handler_thread, NULL, handles, NULL);
		begin(raises, 0);
	} else if (IS("setuid")) {
		begin(changes_user, 0);
		begin(sleeps, 0);
	} else if (IS("closes")) {
		begin(closes, 0);
	} else if (IS("full")) {
		while (dup(0) >= 0)
			;
	} else if (IS("small-stacks")) {
		pthread_attr_t attr;
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, 16384);
		pthread_setattr_default_np(&attr);
	} else if (IS("sealed")) {
		seal_code();
	} else if (IS("anonymous")) {
		copy_code();
	} else if (IS("cancels")) {
		cancel_one(); // the first one loads libgcc_s, which would change the mappings later
		begin(cancels, 0);
	} else if (IS("idle")) {
		begin(idles, 0);
	} else if (IS("locked")) {
		if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0)
			return 3;
	}
	printf("READY %d\n", getpid());
	if (IS("filters") && number >= 0) {
		forbid_after = number;
		begin(forbids, 0);
	}
	char line[64];
	ssize_t n;
	__atomic_store_n(&at_work, 1, __ATOMIC_SEQ_CST);
	while ((n = read(0, line, sizeof line)) > 0)
		if (line[0] == 'f') {
			forbid();
		} else if (line[0] == '?') {
			char text[100];
			int length = snprintf(text, sizeof text, "plus_one(1) = %ld rounds %lu wrong %lu\n", plus_one(1), rounds, wrongs);
			if (write(1, text, length) != length)
				return 1;
		}
	syscall(SYS_exit_group, 0);
}
