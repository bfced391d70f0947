/*
 * One function for each thing that a patch made from object files must be able to deal
 * with, each changed where FIXED is defined. The change is of the answers only: what the functions
 * remember goes the same way before and after it, so that programs of both versions that
 * are asked the same are in the same state, and say what a patched process must say.
 *
 * "all X" is answered by "all NAME=RESULT...".
 */
#include <stdio.h>
#include <unistd.h>
#ifdef CXX
#include "list_cxx.h"
#else
#include "list_c.h"
#endif

#define DECLARE(name) extern long name(long);
FEATURES(DECLARE)
#define ENTRY(name) {#name, name},
static const struct feature {
	const char *name;
	long (*run)(long);
} features[] = {FEATURES(ENTRY)};

int main(void)
{
	char line[100];
	long x;

	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (sscanf(line, "all %ld", &x) != 1)
			continue;
		printf("all");
		for (const struct feature *f = features; f < features + sizeof features / sizeof *features; f++)
			printf(" %s=%ld", f->name, f->run(x));
		printf("\n");
	}
	return 0;
}
