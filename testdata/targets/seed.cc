// The seed scenario: a loop that calls an ordinary member function, a virtual
// one and a free one, which are then patched twice (seed_p1.cc, seed_p2.cc) and
// reverted.
//
//	seed [-q] [THREADS [INTERVAL_MS]]
//
// The main thread is one of the THREADS (default 1), so `seed 1` is a process
// with a single thread. Every thread calls everything, forever, then sleeps for
// the interval (default 2000; 0: it goes on at once). The main thread's calls
// print, unless -q is given. On standard input:
//
//	?     prints the counts: "thread 0 old N new1 N new2 N mixed N bad N" for
//	      every thread, then the sums as "all old N ...".
//	      old, new1, new2: calls answered by that version. mixed: rounds in
//	      which one function answered with another version than the function
//	      called before *and* after it; with a patch that holds all three, no
//	      pause can cause that. bad: wrong result, or `this` was wrong.
//	now   waits until every thread has begun and ended a whole round after the
//	      question, then prints "now method V virtual V function V threads N",
//	      V being the version that all threads saw, or "mixed".
//	quit  ends the program; the end of the input does not.
#include "seed_class.h"
#include "seed_say.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <string>
#include <time.h>
#include <unistd.h>

int DemoClass::say_hello(int number, std::string_view who) {
	calls++;
	return say("Hello,", 0, number, who);
}

DemoVirtual::~DemoVirtual() = default;

int DemoVirtual::say_hello(int number, std::string_view who) {
	calls++;
	return say("Hello,", 0, number, who);
}

int say_hello_fun(int number, std::string_view who) { return say("Hello,", 0, number, who); }

namespace {

constexpr int versions = 3, functions = 3;

struct Worker {
	DemoClass plain;
	DemoVirtual *dynamic;
	long calls = 0; // of each of the two objects, as they should have counted

	std::atomic<std::uint64_t> seen[versions]{};
	std::atomic<std::uint64_t> mixed{0}, bad{0}, rounds{0};
	std::atomic<std::uint32_t> last{0}; // one byte a function: the version it answered with
};

Worker *workers;
int threads = 1;
int interval_ms = 2000;

// In a function of its own, so that no compiler knows the dynamic type.
__attribute__((noinline)) DemoVirtual *make_virtual() { return new DemoVirtual; }

// One call's answer: its version, or -1.
int check(Worker &w, int result, int number) {
	int version = result % 10;
	if (result / 10 != std::abs(number) || version < 0 || version >= versions) {
		w.bad++;
		return -1;
	}
	w.seen[version].fetch_add(1, std::memory_order_relaxed);
	return version;
}

void round(Worker &w, int number) {
	int saw[functions + 1];
	saw[0] = check(w, w.plain.say_hello(number, "from C++ member function"), number);
	saw[1] = check(w, w.dynamic->say_hello(number, "from C++ virtual function"), number);
	saw[2] = check(w, say_hello_fun(number, "from C function"), number);
	int again = -std::abs(number);
	saw[3] = check(w, w.plain.say_hello(again, "once more"), again);
	w.calls++;
	if (w.plain.calls != 2 * w.calls || w.dynamic->calls != w.calls)
		w.bad++;
	if (saw[0] == saw[3] && (saw[1] != saw[0] || saw[2] != saw[0]))
		w.mixed++;
	std::uint32_t last = 0;
	for (int i = 0; i < functions; i++)
		last |= static_cast<std::uint32_t>(saw[i] & 0xff) << 8 * i;
	w.last.store(last);
	w.rounds++;
}

void *work(void *arg) {
	Worker &w = *static_cast<Worker *>(arg);
	timespec pause = {interval_ms / 1000, interval_ms % 1000 * 1000000L};
	for (int n = 1;; n = n % 1000000 + 1) {
		round(w, -n);
		if (interval_ms > 0)
			nanosleep(&pause, nullptr);
	}
}

void print_counts(const std::string &name, const std::uint64_t (&n)[versions + 2]) {
	std::printf("%s old %llu new1 %llu new2 %llu mixed %llu bad %llu\n", name.c_str(), (unsigned long long)n[0],
	            (unsigned long long)n[1], (unsigned long long)n[2], (unsigned long long)n[3],
	            (unsigned long long)n[4]);
}

void print_all_counts() {
	std::uint64_t sum[versions + 2]{};
	for (int t = 0; t < threads; t++) {
		std::uint64_t n[versions + 2];
		for (int v = 0; v < versions; v++)
			n[v] = workers[t].seen[v];
		n[versions] = workers[t].mixed;
		n[versions + 1] = workers[t].bad;
		for (int i = 0; i < versions + 2; i++)
			sum[i] += n[i];
		print_counts("thread " + std::to_string(t), n);
	}
	print_counts("all", sum);
}

// The question "now": answered when every thread has reached its goal.
bool asked;
std::uint64_t *goals;

void ask_now() {
	asked = true;
	for (int t = 0; t < threads; t++)
		goals[t] = workers[t].rounds + 2; // the round that runs now does not count
}

void answer_now() {
	for (int t = 0; t < threads; t++)
		if (workers[t].rounds < goals[t])
			return;
	asked = false;
	static const char *const names[functions] = {"method", "virtual", "function"};
	std::printf("now");
	for (int f = 0; f < functions; f++) {
		int first = workers[0].last >> 8 * f & 0xff;
		bool same = first < versions;
		for (int t = 1; t < threads; t++)
			same = same && static_cast<int>(workers[t].last >> 8 * f & 0xff) == first;
		same ? std::printf(" %s %d", names[f], first) : std::printf(" %s mixed", names[f]);
	}
	std::printf(" threads %d\n", threads);
}

// Reads commands for at most this long.
void listen(int ms) {
	static bool open = true;
	static std::string pending;
	pollfd in = {open ? STDIN_FILENO : -1, POLLIN, 0};
	if (poll(&in, 1, ms) <= 0)
		return;
	char buffer[256];
	ssize_t n = read(STDIN_FILENO, buffer, sizeof buffer);
	if (n <= 0) {
		open = false;
		return;
	}
	pending.append(buffer, n);
	for (std::size_t end; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1)) {
		std::string command = pending.substr(0, end);
		if (command == "?")
			print_all_counts();
		else if (command == "now")
			ask_now();
		else if (command == "quit")
			std::exit(0);
		else
			std::printf("what is \"%s\"?\n", command.c_str());
	}
}

} // namespace

int main(int argc, char **argv) {
	bool quiet = argc > 1 && std::strcmp(argv[1], "-q") == 0;
	argc -= quiet, argv += quiet;
	if (argc > 1)
		threads = std::atoi(argv[1]);
	if (argc > 2)
		interval_ms = std::atoi(argv[2]);
	if (threads < 1 || interval_ms < 0)
		return 2;
	std::setvbuf(stdout, nullptr, _IOLBF, 0);

	workers = new Worker[threads];
	goals = new std::uint64_t[threads]();
	for (int t = 0; t < threads; t++)
		workers[t].dynamic = make_virtual();
	for (int t = 1; t < threads; t++) {
		pthread_t thread;
		if (pthread_create(&thread, nullptr, work, &workers[t]) != 0)
			return 1;
	}
	std::printf("READY %d\n", getpid());
	for (;;) {
		round(workers[0], quiet ? -42 : 42);
		if (asked)
			answer_now();
		listen(asked ? 0 : interval_ms);
	}
}
