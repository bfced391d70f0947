/*
 * Loads a patch library as the target would, fills the references whose
 * addresses it is given, calls offered, and prints what the dynamic linker made
 * of the words at the addresses that follow.
 *
 *     loader LIBRARY CHECK FAILURES LIMIT HELPER BOUND [ADDRESS...]
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 100;
static const int limit = 1000;
static int check(int a, int b) { return a + b; }
static int helper(int x) { return 10000 * x; }
static int bound(int x) { return 50000 * x; }

int main(int argc, char **argv)
{
	void *values[5];
	struct link_map *map;
	void *library;
	int (*offered)(int);
	int i;

	if (argc < 7)
		return 2;
	library = dlopen(argv[1], RTLD_NOW);
	if (!library || dlinfo(library, RTLD_DI_LINKMAP, &map) != 0) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	values[0] = (void *)check;
	values[1] = &failures;
	values[2] = (void *)&limit;
	values[3] = (void *)helper;
	values[4] = (void *)bound;
	for (i = 0; i < 5; i++)
		memcpy((char *)map->l_addr + strtoul(argv[2 + i], 0, 0), &values[i], sizeof values[i]);
	*(void **)&offered = dlsym(library, "offered");
	printf("%d ", offered(7));
	printf("%d\n", failures);
	for (i = 7; i < argc; i++) {
		unsigned long word;
		memcpy(&word, (char *)map->l_addr + strtoul(argv[i], 0, 0), sizeof word);
		printf("%#lx\n", word - map->l_addr);
	}
	return 0;
}
