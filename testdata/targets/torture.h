// What the files of the torture target (torture.c, torture_checks.c,
// torture_syscalls.c, torture_spin.S) share.
#pragma once

#include <stdint.h>

// One check: a thread (or several) that calls `round` all the time.
struct check {
	const char *mode; // the argument that asks for it
	const char *name; // how it is called in the output
	void (*round)(struct check *);
	int threads; // 0 stands for 1
	unsigned long done, wrong;
};

// The tables, each ended by an entry without a mode.
extern struct check basic_checks[], syscall_checks[];

// The library that the dlopen check loads.
extern const char *torture_library;

// wrong reports a wrong result: "WRONG name: message". The process exits with
// status 1, unless it was told to go on.
void wrong(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

// settle_signals stops the sender of the signals check and gives how many were
// sent and received once all have arrived, or after two seconds.
void settle_signals(unsigned long *sent, unsigned long *received);

// The signals that the checks use; the main thread blocks them for everybody.
#define SIGNAL_COUNTED (SIGRTMIN + 1)
#define SIGNAL_WAITED (SIGRTMIN + 2)
#define SIGNAL_SUSPEND (SIGRTMIN + 3)

// Everything in a processor that a thread may rely on. The offsets are known to
// torture_spin.S.
struct state {
	uint8_t vector[32][64]; // xmm, ymm or zmm
	uint64_t mask[8];       // k1 to k7; the first is not used
	uint64_t general[15];   // all but rsp
	uint64_t red_zone[16];  // the 128 bytes below rsp
	double x87[3];
	uint32_t mxcsr;
	uint16_t x87_control;
	uint8_t carry;
};

// spin_registers loads everything from `want`, runs a loop that uses none of it,
// and stores everything to `got`. Levels: 0 SSE, 1 AVX, 2 AVX-512 (F and BW).
void spin_registers(const struct state *want, struct state *got, long level, long loops);
