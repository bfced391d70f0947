// Many processes that do nothing:
//
//	crowd NUMBER
//
// They end with this one.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv) {
	for (int i = argc == 2 ? atoi(argv[1]) : 0; i > 0; i--) {
		pid_t parent = getpid();
		switch (fork()) {
		case -1:
			perror("fork");
			return 1;
		case 0:
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			while (getppid() == parent)
				pause();
			_exit(0);
		}
	}
	printf("READY\n");
	fflush(stdout);
	for (;;)
		pause();
}
