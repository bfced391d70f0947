// A program that counts in restartable sequences (rseq(2)): each thread adds to the
// counter of the processor that it is on, with no lock and no atomic instruction. The
// sum is right only if the kernel aborts every sequence that is interrupted.
//
//	soak_sequences
//
// On standard input, "settle" stops the threads for a moment and prints
//
//	settled sent N received N aborted N wrong N
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/rseq.h>
#include <unistd.h>

enum { THREADS = 4, MOST_CPUS = 1024 };
static struct {
	unsigned long count;
	char room[56];
} counters[MOST_CPUS];
static unsigned long added[THREADS], aborted[THREADS], wrongs;
static int hold, holding;

#define GET(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)

static struct rseq *area(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }

// add_here adds one to the counter of the processor that the thread is on, or gives 0
// if it was interrupted. The sequence is long, so that it often is.
static int add_here(struct rseq *r) {
	uint32_t cpu = r->cpu_id_start;
	unsigned long *counter = &counters[cpu].count;
	__asm__ goto(
	    ".pushsection __rseq_cs, \"aw\"\n\t"
	    ".balign 32\n"
	    "3:\t.long 0, 0\n\t"
	    ".quad 1f, (2f - 1f), 4f\n\t"
	    ".popsection\n\t"
	    "leaq 3b(%%rip), %%rax\n\t"
	    "movq %%rax, %[cs]\n"
	    "1:\tcmpl %[cpu], %[here]\n\t"
	    "jnz 4f\n\t"
	    "movl $200, %%ecx\n"
	    "5:\tdecl %%ecx\n\t"
	    "jnz 5b\n\t"
	    "movq %[counter], %%rax\n\t"
	    "incq %%rax\n\t"
	    "movq %%rax, %[counter]\n"
	    "2:\n\t"
	    ".pushsection .text.unlikely, \"ax\"\n\t"
	    ".byte 0x0f, 0xb9, 0x3d\n\t"
	    ".long 0x53053053\n" // RSEQ_SIG, in front of the abort handler
	    "4:\tjmp %l[interrupted]\n\t"
	    ".popsection"
	    :
	    : [cs] "m"(r->rseq_cs), [cpu] "r"(cpu), [here] "m"(r->cpu_id), [counter] "m"(*counter)
	    : "rax", "rcx", "cc", "memory"
	    : interrupted);
	return 1;
interrupted:
	return 0;
}

__attribute__((noinline)) void *plus_one(void *arg) { return (char *)arg + 1; }

static void *counts(void *arg) {
	long me = (long)arg;
	struct rseq *r = area();
	for (unsigned long n = 1;; n++) {
		if (add_here(r))
			__atomic_store_n(&added[me], added[me] + 1, __ATOMIC_SEQ_CST);
		else
			__atomic_store_n(&aborted[me], aborted[me] + 1, __ATOMIC_SEQ_CST);
		if (n % 1000 == 0 && plus_one(arg) != (char *)arg + 1)
			__atomic_add_fetch(&wrongs, 1, __ATOMIC_SEQ_CST);
		while (GET(hold)) {
			__atomic_add_fetch(&holding, 1, __ATOMIC_SEQ_CST);
			while (GET(hold))
				usleep(500);
			__atomic_add_fetch(&holding, -1, __ATOMIC_SEQ_CST);
		}
	}
	return arg;
}

int main(void) {
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (__rseq_size == 0) {
		printf("the C library registers no restartable sequences\n");
		return 3;
	}
	for (long i = 0; i < THREADS; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, counts, (void *)i) != 0)
			return 1;
	}
	printf("READY %d\n", getpid());
	char line[64];
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (strcmp(line, "settle\n") != 0)
			continue;
		__atomic_store_n(&hold, 1, __ATOMIC_SEQ_CST);
		while (GET(holding) != THREADS)
			usleep(100);
		unsigned long sent = 0, received = 0, aborts = 0;
		for (int i = 0; i < THREADS; i++)
			sent += added[i], aborts += aborted[i];
		for (int i = 0; i < MOST_CPUS; i++)
			received += counters[i].count;
		printf("settled sent %lu received %lu aborted %lu wrong %lu\n", sent, received, aborts, GET(wrongs));
		__atomic_store_n(&hold, 0, __ATOMIC_SEQ_CST);
	}
	_exit(0);
}
