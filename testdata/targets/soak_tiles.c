// A program that keeps numbers in the tile registers (AMX) for long and looks whether
// they are still there.
//
//	soak_tiles
//
// On standard input, "settle" prints "settled rounds N wrong N". Exit status 3: the
// processor or the kernel has no tiles.
#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 }; // Documentation/arch/x86/xstate.rst
static unsigned long rounds, wrongs;

__attribute__((noinline)) void *plus_one(void *arg) { return (char *)arg + 1; }

static void *keeps(void *arg) {
	struct {
		uint8_t palette, start_row, reserved[14];
		uint16_t bytes[16];
		uint8_t rows[16];
	} config;
	static __thread uint8_t want[8][1024], got[8][1024];
	memset(&config, 0, sizeof config);
	config.palette = 1;
	for (int i = 0; i < 8; i++)
		config.bytes[i] = 64, config.rows[i] = 16;
	for (unsigned long n = (unsigned long)arg;; n += 7) {
		for (int i = 0; i < 8; i++)
			for (int k = 0; k < 1024; k++)
				want[i][k] = (uint8_t)(n * 31 + i * 5 + k);
		memset(got, 0, sizeof got);
		_tile_loadconfig(&config);
		_tile_loadd(0, want[0], 64);
		_tile_loadd(1, want[1], 64);
		_tile_loadd(2, want[2], 64);
		_tile_loadd(3, want[3], 64);
		_tile_loadd(4, want[4], 64);
		_tile_loadd(5, want[5], 64);
		_tile_loadd(6, want[6], 64);
		_tile_loadd(7, want[7], 64);
		for (int i = 0; i < 2000000; i++)
			__asm__ volatile("" : : "r"(i));
		_tile_stored(0, got[0], 64);
		_tile_stored(1, got[1], 64);
		_tile_stored(2, got[2], 64);
		_tile_stored(3, got[3], 64);
		_tile_stored(4, got[4], 64);
		_tile_stored(5, got[5], 64);
		_tile_stored(6, got[6], 64);
		_tile_stored(7, got[7], 64);
		_tile_release();
		if (memcmp(want, got, sizeof want) != 0 || plus_one(arg) != (char *)arg + 1)
			__atomic_add_fetch(&wrongs, 1, __ATOMIC_SEQ_CST);
		__atomic_add_fetch(&rounds, 1, __ATOMIC_SEQ_CST);
	}
	return arg;
}

int main(void) {
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) != 0)
		return 3;
	for (long i = 0; i < 2; i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, keeps, (void *)i) != 0)
			return 1;
	}
	printf("READY %d\n", getpid());
	char line[64];
	while (fgets(line, sizeof line, stdin) != NULL)
		if (strcmp(line, "settle\n") == 0)
			printf("settled rounds %lu wrong %lu\n", __atomic_load_n(&rounds, __ATOMIC_SEQ_CST), __atomic_load_n(&wrongs, __ATOMIC_SEQ_CST));
	_exit(0);
}
