// A program whose thread waits in one of several special places, named on the
// command line.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
volatile int sink;

NOINLINE void waits(void) {
    char c;
    printf("READY %d\n", getpid());
    fflush(stdout);
    while (read(0, &c, 1) == 1)
        sink++;
}

// A function without unwind information. Its caller must not be lost.
extern void no_info(void (*f)(void));
__asm__(".text\n.type no_info,@function\nno_info: sub $8,%rsp\ncall *%rdi\nadd $8,%rsp\nret\n.size no_info,.-no_info\n");

NOINLINE void hidden_caller(void) {
    no_info(waits);
    sink++;
}

NOINLINE void handler(int sig) {
    sink = sig;
    waits();
    sink++;
}
NOINLINE void interrupted(void) {
    raise(SIGUSR1);
    sink++;
}

static ucontext_t back, coroutine;
NOINLINE void in_coroutine(void) {
    waits();
    sink++;
}

NOINLINE void jitted(void) {
    // sub $8,%rsp; call *%rdi; add $8,%rsp; ret
    static const unsigned char code[] = {0x48, 0x83, 0xec, 8, 0xff, 0xd7, 0x48, 0x83, 0xc4, 8, 0xc3};
    unsigned char *p = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(p, code, sizeof code);
    ((void (*)(void (*)(void)))p)(waits);
    sink++;
}

NOINLINE int recurse(int n) {
    if (n == 0)
        waits();
    else
        recurse(n - 1);
    return sink++;
}


__attribute__((noreturn)) static NOINLINE void leaves(void) {
    waits();
    _exit(0);
}
NOINLINE void calls_last(void) { leaves(); }

static void *thread(void *f) {
    ((void (*)(void))f)();
    return 0;
}

int main(int argc, char **argv) {
    const char *where = argc > 1 ? argv[1] : "";
    struct sigaction a = {.sa_handler = handler};
    stack_t s = {.ss_sp = malloc(65536), .ss_size = 65536};
    if (!strcmp(where, "hidden"))
        hidden_caller();
    if (!strcmp(where, "signal") || !strcmp(where, "altstack")) {
        if (*where == 'a') {
            sigaltstack(&s, 0);
            a.sa_flags = SA_ONSTACK;
        }
        sigaction(SIGUSR1, &a, 0);
        interrupted();
    }
    if (!strcmp(where, "coroutine")) {
        getcontext(&coroutine);
        coroutine.uc_stack = s;
        coroutine.uc_link = &back;
        makecontext(&coroutine, in_coroutine, 0);
        swapcontext(&back, &coroutine);
    }
    if (!strcmp(where, "jit"))
        jitted();
    if (!strcmp(where, "deep"))
        recurse(argc > 2 ? atoi(argv[2]) : 100);
    if (!strcmp(where, "noreturn"))
        calls_last();
    if (!strcmp(where, "thread")) {
        pthread_t t;
        pthread_create(&t, 0, thread, (void *)waits);
        pthread_join(t, 0);
    }
    return sink & 1;
}
