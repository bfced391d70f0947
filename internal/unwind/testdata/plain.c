// A program without .eh_frame of its own that waits below a few calls.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
volatile int sink;

NOINLINE int innermost(char *p) {
    char c;
    int n = 0;
    printf("READY %d\n", getpid());
    fflush(stdout);
    while (read(0, &c, 1) == 1)
        n++;
    return n + p[0];
}

NOINLINE int middle(int n) {
    char buffer[n];
    memset(buffer, n, sizeof buffer);
    int r = innermost(buffer);
    sink = buffer[n / 2];
    return r;
}

NOINLINE int outer(int a, int b, int c, int d, int e, int f, int g, int h) {
    int r = middle(a + b + c + d + e + f + g + h);
    return r + a * b * c * d * e * f * g * h;
}

int main(int argc, char **argv) {
    (void)argv;
    return outer(1, argc, 3, 4, 5, 6, 7, 8) & 1;
}
