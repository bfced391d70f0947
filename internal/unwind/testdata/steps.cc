// A program that does one round of everything for each line that it reads: the
// test executes it instruction by instruction.
#include <alloca.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>

#define NOINLINE __attribute__((noinline))

volatile long sink;

NOINLINE long leaf(long a) { return a * 3 + sink; }

NOINLINE long many(long a, long b, long c, long d, long e, long f, long g, long h, long i) {
    long r = leaf(a) + leaf(b) + leaf(c) + leaf(d);
    return r * e + f * g - leaf(h) * i;
}

NOINLINE long tail(long a) { return leaf(a + 1); }

NOINLINE long dynamic(long n) {
    char *p = static_cast<char *>(alloca(n));
    memset(p, 1, n);
    return p[n / 2] + leaf(n);
}

NOINLINE long realigned(long n) {
    alignas(64) char big[192];
    memset(big, int(n), sizeof big);
    sink = big[n];
    return leaf(big[3]);
}

NOINLINE long both(long n) {
    alignas(64) char first[64];
    char *second = static_cast<char *>(alloca(n));
    first[0] = second[0] = 3;
    sink = sink + first[n % 64] + second[0];
    return many(first[0], second[0], n, 4, 5, 6, 7, 8, 9);
}

NOINLINE long branches(long n) {
    if (n < 3)
        return n;
    if (n & 1) {
        char small[40];
        memset(small, 2, sizeof small);
        sink = small[n];
        return branches(n / 2) + leaf(small[5]);
    }
    switch (n % 7) {
    case 0: return tail(n);
    case 1: return many(1, 2, 3, 4, 5, 6, 7, 8, n);
    case 2: return dynamic(n);
    case 3: return realigned(n);
    case 4: return both(n);
    }
    return branches(n - 1);
}

struct Counts {
    ~Counts() { sink = sink + 1; }
};

NOINLINE long throws(long n) {
    Counts c;
    if (n == 0)
        throw std::string("deep");
    return throws(n - 1) + 1;
}

NOINLINE long catches(long n) {
    try {
        return throws(n);
    } catch (const std::string &s) {
        return long(s.size());
    }
}

jmp_buf back;
[[noreturn]] NOINLINE void away(long n) {
    if (n)
        away(n - 1);
    longjmp(back, 2);
}
NOINLINE long jumps(long n) {
    if (setjmp(back) == 0)
        away(n);
    return leaf(n);
}

int compare(const void *a, const void *b) { return int(leaf(*static_cast<const int *>(a)) - leaf(*static_cast<const int *>(b))); }

NOINLINE long sorts() {
    int v[7] = {5, 3, 9, 1, 7, 2, 8};
    qsort(v, 7, sizeof v[0], compare);
    return v[3];
}

NOINLINE long libc() {
    char *p = static_cast<char *>(malloc(100));
    snprintf(p, 100, "%d %s %g", int(sink), "text", 3.25);
    long n = long(strlen(p));
    std::string s(p);
    s += s;
    free(p);
    return n + long(s.size());
}

NOINLINE long everything(long n) {
    long r = 0;
    for (long i = 0; i < n; i++)
        r += branches(i);
    r += realigned(5) + both(7) + dynamic(33) + many(1, 2, 3, 4, 5, 6, 7, 8, 9);
    return r + catches(2) + jumps(3) + sorts() + libc();
}

int main() {
    printf("READY %d\n", getpid());
    fflush(stdout);
    char c;
    while (read(0, &c, 1) == 1)
        sink = everything(16);
    return 0;
}
