// A program or library whose state and references a patch made from source must keep.
// FIX is defined after the change.
//
// "x" on standard input, a number, is answered by "x -> RESULT hits N calls N own N NAME".
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int hits;
static __thread int own = 5;
static const char *const names[] = {"zero", "one", "two", "three"};
static int plus(int x) { return x + 10; }
static int times(int x) { return x * 10; }
static int (*const table[])(int) = {plus, times};
static int (*chosen)(int) = plus;
int exported = 3;

int calls_of_scale(void);
static int calls;
int calls_of_scale(void) { return calls; }

__attribute__((noinline)) static int scale(int x) {
	static int turn;
	calls++;
	chosen = table[turn++ & 1];
	return chosen(x) + exported;
}

#ifdef FIX
static int fixed;
static int fix(int x) {
	static const int bonus[] = {1000, 2000, 3000, 4000, 5000};
	fixed++;
	return x + bonus[0] + 0 * bonus[(unsigned)x % 5];
}
#endif

int answer(int x);
__attribute__((noinline)) int answer(int x) {
	hits++;
	own++;
#ifdef FIX
	if (x > 1000000) {
		printf("too large: %d\n", x);
		return -1;
	}
#endif
	switch (x & 7) {
	case 0: x += 1; break;
	case 1: x += 20; break;
	case 2: x ^= 3; break;
	case 3: x -= 4; break;
	case 4: x *= 5; break;
	case 5: x += 60; break;
	case 6: x -= 7; break;
	default: x += abs(x) % 9;
	}
#ifdef FIX
	return fix(scale(x));
#else
	return scale(x);
#endif
}

void serve(void);
void serve(void) {
	char line[64];
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL) {
		int x = atoi(line), got = answer(x);
		printf("%d -> %d hits %d calls %d own %d %s\n", x, got, hits, calls_of_scale(), own, names[hits & 3]);
	}
}

#ifndef LIBRARY
int main(void) {
	serve();
	return 0;
}
#endif
