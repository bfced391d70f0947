// A program that does not wish hotpatch well.
//
//	hostile maps FILE...   maps files executable, as a dynamic linker would
//	hostile scribbles      writes over everything that hotpatch keeps in it, all the time
//	hostile moves          maps, moves and unmaps memory all the time
//	hostile plain
//
// Answers "?" with "plus_one(1) = 2".
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

__attribute__((noinline)) long plus_one(long x) {
	__asm__ volatile("" : "+r"(x));
	return x + 1;
}

// scribbles looks for memory that is in no file, begins with an executable page, and
// has "hotpatch" in it; it writes anything at all over words of it and of what follows.
static void *scribbles(void *arg) {
	unsigned seed = 1;
	for (;; usleep(200)) {
		FILE *maps = fopen("/proc/self/maps", "r");
		char line[512];
		int ours = 0;
		while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
			unsigned long from, to, inode;
			char perm[5];
			if (sscanf(line, "%lx-%lx %4s %*s %*s %lu", &from, &to, perm, &inode) != 4 || inode != 0 || strchr(line, '[') != NULL) {
				ours = 0;
				continue;
			}
			if (perm[2] == 'x')
				ours = to - from >= 8192 && memcmp((char *)from + 4096, "hotpatch", 8) == 0;
			if (!ours)
				continue;
			// The page with the code is left alone: it may be running.
			unsigned long at = perm[2] == 'x' ? from + 4096 : from;
			if (perm[1] != 'w')
				mprotect((void *)at, to - at, PROT_READ | PROT_WRITE | PROT_EXEC);
			for (int i = 0; i < 4; i++) {
				unsigned long word = at + 8 * ((unsigned long)rand_r(&seed) % ((to - at < 65536 ? to - at : 65536) / 8));
				unsigned long value = ((unsigned long)rand_r(&seed) << 33) ^ (unsigned long)rand_r(&seed);
				memcpy((void *)word, &value, 1 + rand_r(&seed) % 8);
			}
		}
		if (maps != NULL)
			fclose(maps);
	}
	return arg;
}

static void *moves(void *arg) {
	for (unsigned seed = 7;;) {
		size_t size = 4096 * (1 + rand_r(&seed) % 64);
		char *p = mmap(NULL, size, PROT_READ | PROT_WRITE | (rand_r(&seed) % 2 ? PROT_EXEC : 0), MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			abort();
		memset(p, 0x90, size);
		p = mremap(p, size, size * 2, MREMAP_MAYMOVE);
		if (p == MAP_FAILED || munmap(p, size * 2) != 0)
			abort();
	}
	return arg;
}

int main(int argc, char **argv) {
	const char *mode = argc > 1 ? argv[1] : "plain";
	setvbuf(stdout, NULL, _IOLBF, 0);
	pthread_t thread;
	if (strcmp(mode, "maps") == 0) {
		for (int i = 2; i < argc; i++) {
			struct stat st;
			int fd = open(argv[i], O_RDONLY);
			if (fd < 0 || fstat(fd, &st) != 0 || mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED) {
				perror(argv[i]);
				return 1;
			}
			close(fd);
		}
	} else if (strcmp(mode, "scribbles") == 0) {
		pthread_create(&thread, NULL, scribbles, NULL);
	} else if (strcmp(mode, "moves") == 0) {
		pthread_create(&thread, NULL, moves, NULL);
	}
	printf("READY %d\n", getpid());
	char line[64];
	while (fgets(line, sizeof line, stdin) != NULL)
		printf("plus_one(1) = %ld\n", plus_one(1));
	return 0;
}
