// Calls functions that a patch replaces, and says what a call takes:
//
//	call [far]
//
// For each line of input, it prints the nanoseconds of one call of that function:
// plain, or method, which is virtual and called through the vtable. With far, nothing
// can be mapped within 2 GiB of the program.
#include "call.h"
#include <cstdio>
#include <cstring>
#include <ctime>
#include <sys/mman.h>
#include <unistd.h>

long plain(long x) { return x + 1; }
long Thing::method(long x) { return x + 1; }

static double now() {
	timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void fill(unsigned long from, unsigned long to) {
	if (from < to)
		mmap(reinterpret_cast<void *>(from), to - from, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
}

// crowd leaves no room near this program.
static void crowd() {
	const unsigned long here = reinterpret_cast<unsigned long>(&plain) & -4096UL, reach = 1UL << 32;
	unsigned long at = here > reach ? here - reach : 1 << 16, to = here + reach;
	struct { unsigned long start, end; } used[512];
	int n = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	char line[512];
	while (n < 512 && fgets(line, sizeof line, f) != NULL)
		n += sscanf(line, "%lx-%lx", &used[n].start, &used[n].end) == 2;
	fclose(f);
	for (int i = 0; i < n && at < to; i++) {
		if (used[i].end <= at)
			continue;
		fill(at, used[i].start < to ? used[i].start : to);
		at = used[i].end;
	}
	fill(at, to);
}

template <typename F> static double measure(F call) {
	enum { CALLS = 2000000, TIMES = 9 };
	double best = 1e18;
	for (int t = 0; t < TIMES; t++) {
		long x = 0;
		double began = now();
		for (int i = 0; i < CALLS; i++)
			x = call(x);
		double took = (now() - began) / CALLS;
		__asm__ volatile("" ::"r"(x));
		best = took < best ? took : best;
	}
	return best;
}

int main(int argc, char **) {
	if (argc > 1)
		crowd();
	Thing *thing = new Thing;
	printf("READY %d\n", getpid());
	fflush(stdout);
	for (char line[64]; fgets(line, sizeof line, stdin) != NULL;) {
		__asm__ volatile("" : "+r"(thing)); // its class is not known
		bool method = strcmp(line, "method\n") == 0;
		printf("%.3f ns\n", method ? measure([thing](long x) { return thing->method(x); }) : measure(plain));
		fflush(stdout);
	}
}
