// A coroutine (makecontext, swapcontext) that is suspended inside `inside`, on a
// stack that is no thread's current one. On standard input:
//
//	step   resumes it until it suspends itself again: "step N", N = 1, 2, ...
//	leave  lets it return out of `inside`, which prints "left R" (R = 77), then
//	       waits outside; the next step enters again
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

static ucontext_t main_context, coroutine;
static int leave, steps;

__attribute__((noinline)) long inside(long x) {
	__asm__ volatile("" : "+r"(x));
	while (!leave) {
		steps++;
		swapcontext(&coroutine, &main_context);
	}
	return x + 7;
}

static void run(void) {
	for (;;) {
		printf("left %ld\n", inside(70));
		leave = 0;
		swapcontext(&coroutine, &main_context);
	}
}

int main(void) {
	enum { stack_size = 256 * 1024 };
	setvbuf(stdout, NULL, _IOLBF, 0);
	getcontext(&coroutine);
	coroutine.uc_stack.ss_sp = malloc(stack_size);
	coroutine.uc_stack.ss_size = stack_size;
	makecontext(&coroutine, run, 0);
	swapcontext(&main_context, &coroutine);
	printf("READY %d\n", getpid());
	char line[64];
	while (fgets(line, sizeof line, stdin) != NULL) {
		leave = strncmp(line, "leave", 5) == 0;
		swapcontext(&main_context, &coroutine);
		if (line[0] == 's')
			printf("step %d\n", steps);
	}
	return 0;
}
