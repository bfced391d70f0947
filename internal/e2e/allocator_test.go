package e2e

import (
	"strconv"
	"testing"

	"hotpatch/internal/testtarget"
)

// ownAllocator is a malloc that keeps its state in thread-local variables which
// do not begin with zero, and a list of all threads that it knows, as jemalloc
// does. It ends the process when anything of that is not as it left it. A thread
// is forgotten when it ends as threads do.
const ownAllocator = `
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
#include <string.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void __libc_free(void *);

enum { stranger = 0x5e7, known = 0x1e57, ended = 0xe4d };
struct cache {
	long state;
	struct cache *next;
};
static __thread struct cache cache __attribute__((tls_model(TLS_MODEL))) = {stranger, NULL};
static struct cache *all;
static char lock;
static pthread_key_t key;
static int ready;

static void broken(const char *why) {
	if (write(2, why, strlen(why)) >= 0)
		_exit(99);
}

static void forget(void *p) {
	while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE))
		;
	for (struct cache **c = &all; *c; c = &(*c)->next)
		if (*c == p) {
			*c = (*c)->next;
			break;
		}
	((struct cache *)p)->state = ended;
	__atomic_clear(&lock, __ATOMIC_RELEASE);
}

__attribute__((constructor)) static void begin(void) { ready = pthread_key_create(&key, forget) == 0; }

static void look(int allocates) {
	if (cache.state != stranger && cache.state != known && cache.state != ended)
		broken("a thread began with a wrong state\n");
	while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE))
		;
	int begins = allocates && ready && cache.state == stranger;
	if (begins) {
		cache.state = known;
		cache.next = all;
		all = &cache;
	}
	for (struct cache *c = all; c; c = c->next)
		if (c->state != known)
			broken("a known thread has lost its state\n");
	__atomic_clear(&lock, __ATOMIC_RELEASE);
	if (begins)
		pthread_setspecific(key, &cache);
}

void *malloc(size_t n) { look(1); return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { look(1); return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { look(1); return __libc_realloc(p, n); }
void free(void *p) { look(0); __libc_free(p); }
`

// TestOwnAllocator: the threads that hotpatch makes in the target are threads to
// an allocator of the target's own, wherever it keeps its thread-local state.
func TestOwnAllocator(t *testing.T) {
	t.Parallel()
	patch := calcPatch(t, "add_one", 1000, "first", 1)
	next := calcPatch(t, "add_one", 2000, "second", 2)
	tests := []struct {
		name string
		spec func() testtarget.Spec
	}{
		{"in a library", func() testtarget.Spec {
			library := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"allocator.c": ownAllocator}, Shared: true,
				Flags: []string{"-O2", `-DTLS_MODEL="initial-exec"`}})
			return testtarget.Spec{Sources: calcSources, Flags: []string{"-O2"}, Libs: []string{library}}
		}},
		{"in the program", func() testtarget.Spec {
			return testtarget.Spec{Sources: calcSources, Files: map[string]string{"allocator.c": ownAllocator}, Name: "calc",
				Flags: []string{"-O2", "-fno-builtin", `-DTLS_MODEL="local-exec"`}}
		}},
		{"in a program of a fixed address", func() testtarget.Spec {
			return testtarget.Spec{Sources: calcSources, Files: map[string]string{"allocator.c": ownAllocator}, Name: "calc",
				Flags: []string{"-O2", "-fno-builtin", "-no-pie", "-fno-pie", `-DTLS_MODEL="local-exec"`}}
		}},
	}
	for _, tt := range some(tests, 0, 1) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, testtarget.Build(t, tt.spec()))
			before := testtarget.TextSnapshot(t, p.PID())
			for range 4 {
				apply(t, p.PID(), patch)
				p.Ask("thread add_one 1", `^add_one\(1\) = 1001$`)
				apply(t, p.PID(), next)
				p.Ask("thread add_one 1", `^add_one\(1\) = 2001$`)
				revert(t, p.PID())
				p.Ask("thread add_one 1", `^add_one\(1\) = 2$`)
			}
			must(t, "verify", "--pid", strconv.Itoa(p.PID()))
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}
