// A C++20 coroutine, suspended in the middle. On standard input:
//
//	next    resumes it: "next N"
//	again   destroys it, and begins another one: "again N"
//	drop    destroys it: "dropped"
#include "consistent_generator.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

__attribute__((noinline)) generator counting(long from) {
	for (long i = from;; i++)
		co_yield i;
}

int main() {
	setvbuf(stdout, nullptr, _IOLBF, 0);
	std::coroutine_handle<generator::promise_type> h;
	auto begin = [&] {
		long from = 1;
		__asm__ volatile("" : "+r"(from));
		h = counting(from).handle;
		h.resume();
	};
	begin();
	printf("READY %d\n", getpid());
	char line[64];
	while (fgets(line, sizeof line, stdin) != nullptr) {
		if (strncmp(line, "next", 4) == 0 && h) {
			h.resume();
			printf("next %ld\n", h.promise().value);
		} else if (strncmp(line, "again", 5) == 0) {
			if (h)
				h.destroy();
			begin();
			printf("again %ld\n", h.promise().value);
		} else if (strncmp(line, "drop", 4) == 0 && h) {
			h.destroy();
			h = nullptr;
			volatile char over[4096]; // nothing of it stays on the stack
			memset(const_cast<char *>(over), 0, sizeof over);
			printf("dropped\n");
		}
	}
	return 0;
}
