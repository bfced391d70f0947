// Two coroutines in the style of emulators: each has a stack of its own from mmap
// and is left and entered by sigsetjmp and siglongjmp, so that no plain word says
// where it goes on. Both are suspended inside `inside`. On standard input:
//
//	step N    resumes coroutine N (0, 1) until it suspends itself: "step N COUNT"
//	leave N   lets it return out of `inside` for good: "left N R" (R = 77)
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

static sigjmp_buf home;
static struct coroutine {
	sigjmp_buf self;
	ucontext_t first;
	int leave, steps, over;
} *list[2], *current;

__attribute__((noinline)) static void suspend(struct coroutine *c) {
	if (sigsetjmp(c->self, 0) == 0)
		siglongjmp(home, 1);
}

__attribute__((noinline)) long inside(long x) {
	struct coroutine *c = current;
	__asm__ volatile("" : "+r"(x));
	while (!c->leave) {
		c->steps++;
		suspend(c);
	}
	return x + 7;
}

static void run(void) {
	struct coroutine *c = current;
	int number = c == list[1];
	printf("left %d %ld\n", number, inside(70));
	c->over = 1;
	for (;;)
		suspend(c);
}

static void resume(struct coroutine *c) {
	current = c;
	if (sigsetjmp(home, 0) != 0)
		return;
	if (c->steps == 0)
		setcontext(&c->first);
	siglongjmp(c->self, 1);
}

int main(void) {
	enum { stack_size = 256 * 1024 };
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 0; i < 2; i++) {
		struct coroutine *c = list[i] = calloc(1, sizeof *c);
		getcontext(&c->first);
		c->first.uc_stack.ss_sp = mmap(NULL, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		c->first.uc_stack.ss_size = stack_size;
		makecontext(&c->first, run, 0);
		resume(c);
	}
	printf("READY %d\n", getpid());
	char line[64];
	int n;
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (sscanf(line, "step %d", &n) == 1 && (n == 0 || n == 1)) {
			resume(list[n]);
			printf("step %d %d\n", n, list[n]->steps);
		} else if (sscanf(line, "leave %d", &n) == 1 && (n == 0 || n == 1)) {
			list[n]->leave = 1;
			resume(list[n]);
		}
	}
	return 0;
}
