// A process with many modules:
//
//	modules DIRECTORY NUMBER
//
// It opens DIRECTORY/0.so, DIRECTORY/1.so, …
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
	for (int i = 0; argc == 3 && i < atoi(argv[2]); i++) {
		char path[4096];
		snprintf(path, sizeof path, "%s/%d.so", argv[1], i);
		if (dlopen(path, RTLD_NOW) == NULL) {
			fprintf(stderr, "%s\n", dlerror());
			return 1;
		}
	}
	printf("READY %d\n", getpid());
	fflush(stdout);
	for (;;)
		pause();
}
