// A program whose threads are in the middle of everything that makes a stack
// hard to walk: recursion, alloca, realigned frames, signal handlers on
// alternate and ordinary stacks, exceptions in flight, longjmp, callbacks from
// libc, calls that do not return. Usage: many THREADS.
#include <alloca.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

namespace {

volatile unsigned sink;

struct Worker {
    unsigned seed;
    jmp_buf back;
};
thread_local Worker *self;

unsigned roll() {
    self->seed = self->seed * 1103515245 + 12345;
    return self->seed >> 8;
}

// linger spins or sleeps for a moment: here is where samples are taken.
NOINLINE void linger() {
    if (roll() % 4) {
        struct timespec t = {0, long(roll() % 2000000)};
        nanosleep(&t, nullptr);
        return;
    }
    for (unsigned i = roll() % 20000; i; i--)
        sink = sink + i;
}

NOINLINE void act(unsigned depth);

NOINLINE void deeper(unsigned depth, char *p) {
    memset(p, int(depth), 16);
    act(depth);
    sink = sink + p[3];
}

NOINLINE void with_alloca(unsigned depth) { deeper(depth, static_cast<char *>(alloca(16 + roll() % 500))); }

NOINLINE void realigned(unsigned depth) {
    alignas(128) char big[256];
    deeper(depth, big);
    sink = sink + big[200];
}

NOINLINE void with_array(unsigned depth) {
    alignas(64) char first[64];
    char second[1 + roll() % 300];
    first[0] = second[0] = 1;
    deeper(depth, first);
    sink = sink + second[0] + first[1];
}

int compare(const void *a, const void *b) {
    if (roll() % 16 == 0)
        act(1);
    return *static_cast<const int *>(a) - *static_cast<const int *>(b);
}

NOINLINE void callback() {
    int v[6] = {5, 3, 9, 1, 7, 2};
    qsort(v, 6, sizeof v[0], compare);
    sink = sink + unsigned(v[0]);
}

struct Lingers {
    ~Lingers() { linger(); }
};

NOINLINE void thrower(unsigned depth) {
    Lingers while_unwinding;
    if (depth == 0)
        throw int(roll());
    thrower(depth - 1);
    sink = sink + 1;
}

NOINLINE void exception() {
    try {
        thrower(roll() % 5);
    } catch (int v) {
        linger();
        sink = sink + unsigned(v);
    }
}

// The call of this one is the last instruction of its caller.
[[noreturn]] NOINLINE void goes_away() {
    linger();
    longjmp(self->back, 1);
}
[[noreturn]] NOINLINE void calls_last(unsigned depth) {
    if (depth)
        calls_last(depth - 1);
    goes_away();
}

NOINLINE void jump() {
    if (setjmp(self->back) == 0)
        calls_last(roll() % 4);
    linger();
}

NOINLINE void signalled(int sig) {
    pthread_kill(pthread_self(), sig);
    linger();
}

NOINLINE void act(unsigned depth) {
    if (depth == 0)
        return linger();
    switch (roll() % 9) {
    case 0: return with_alloca(depth - 1);
    case 1: realigned(depth - 1); break;
    case 2: with_array(depth - 1); break;
    case 3: callback(); break;
    case 4: exception(); break;
    case 5: jump(); break;
    case 6: signalled(SIGUSR1); break;
    case 7: signalled(SIGUSR2); break;
    default: act(depth - 1); break;
    }
    sink = sink + depth;
}

void handler(int) { linger(); }

// Interrupts whatever is running, in a handler on the thread's own stack.
void deep_handler(int) {
    Worker *w = self;
    Worker inner = {w->seed, {}};
    self = &inner;
    act(roll() % 4);
    self = w;
}

void *work(void *arg) {
    Worker w = {unsigned(reinterpret_cast<uintptr_t>(arg)) * 2654435761u, {}};
    self = &w;
    size_t size = 256 << 10;
    stack_t alternate = {malloc(size), 0, size};
    sigaltstack(&alternate, nullptr);
    for (;;)
        act(roll() % 40);
    return nullptr;
}

} // namespace

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    struct sigaction a = {};
    a.sa_handler = handler;
    a.sa_flags = SA_ONSTACK | SA_RESTART;
    sigaction(SIGUSR1, &a, nullptr);
    a.sa_handler = deep_handler;
    a.sa_flags = SA_RESTART;
    sigaction(SIGUSR2, &a, nullptr);
    for (int i = 1; i <= threads; i++) {
        pthread_t t;
        pthread_create(&t, nullptr, work, reinterpret_cast<void *>(uintptr_t(i)));
    }
    printf("READY %d\n", getpid());
    fflush(stdout);
    char c;
    while (read(0, &c, 1) == 1) {
    }
    return 0;
}
