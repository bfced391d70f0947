// The same in C++: templates, virtual functions, guards, thread_local with a destructor,
// an anonymous namespace, exceptions through old and new code. FIX is defined after the
// change.
//
// "x" on standard input, a number, is answered by "x -> RESULT hits N".
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <vector>

namespace {
int hits;

struct Shape {
	virtual ~Shape() = default;
	virtual long area(long x) const { return x; }
};

struct Square : Shape {
	long area(long x) const override { return x * x; }
};

template <typename T> T clamp(T x, T most) { return x > most ? most : x; }

struct Own {
	std::vector<long> seen;
	~Own() { seen.clear(); }
};
thread_local Own own;

const std::string &prefix() {
	static const std::string text = std::string("prefix-") + std::to_string(getpid() > 0);
	return text;
}

std::map<long, std::string> &remembered() {
	static std::map<long, std::string> all;
	return all;
}
} // namespace

const Shape &shape();
const Shape &shape() {
	static const Square square;
	return square;
}

long answer(long x);
__attribute__((noinline)) long answer(long x) {
	hits++;
	own.seen.push_back(x);
	remembered()[x] = prefix() + std::to_string(x);
	if (x < 0)
		throw std::runtime_error("negative " + std::to_string(x));
#ifdef FIX
	try {
		if (x == 13)
			throw std::runtime_error("thirteen");
	} catch (const std::exception &e) {
		return 1000000 + static_cast<long>(std::string(e.what()).size());
	}
	if (x == 14)
		throw std::runtime_error("fourteen");
	return clamp(shape().area(x), 5000L) + 1000 + static_cast<long>(own.seen.size());
#else
	return clamp(shape().area(x), 5000L) + static_cast<long>(own.seen.size());
#endif
}

void serve();
void serve() {
	char line[64];
	std::setvbuf(stdout, nullptr, _IOLBF, 0);
	std::printf("READY %d\n", getpid());
	while (std::fgets(line, sizeof line, stdin) != nullptr) {
		long x = std::atol(line);
		try {
			long got = answer(x);
			std::printf("%ld -> %ld hits %d\n", x, got, hits);
		} catch (const std::exception &e) {
			std::printf("%ld -> caught %s hits %d\n", x, e.what(), hits);
		}
	}
}

#ifndef LIBRARY
int main() { serve(); }
#endif
