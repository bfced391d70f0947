// C++ exceptions through patched code. `thrower` throws, `middle` (the function
// to patch) has a destructor to run on the way, `catcher` catches.
//
// On standard input "throw X" is answered by "caught X destroyed N", the second
// number being how many guards were destroyed so far. The patch (throws_p1.cc)
// throws by itself, X + 5000, and rethrows.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <unistd.h>

long destroyed;

struct Guard {
	~Guard() { destroyed++; }
};

__attribute__((noinline)) long thrower(long x) {
	if (x >= 0)
		throw std::runtime_error(std::to_string(x));
	return x;
}

__attribute__((noinline)) long middle(long x) {
	Guard guard;
	return thrower(x) + 1;
}

__attribute__((noinline)) void catcher(long x) {
	try {
		std::printf("returned %ld\n", middle(x));
	} catch (const std::runtime_error &e) {
		std::printf("caught %s destroyed %ld\n", e.what(), destroyed);
	}
}

int main() {
	std::setvbuf(stdout, nullptr, _IOLBF, 0);
	std::printf("READY %d\n", getpid());
	char line[64];
	long x;
	while (std::fgets(line, sizeof line, stdin) != nullptr)
		if (std::sscanf(line, "throw %ld", &x) == 1)
			catcher(x);
}
