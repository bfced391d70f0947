package patchfile

import (
	"os/exec"
	"testing"

	"hotpatch/internal/testtarget"
)

// shadowProgram uses shadow data in eight threads: each has objects of its own,
// which come and go, and all count in the data of one object.
const shadowProgram = `
#define HOTPATCH_SHADOW
#include "hotpatch.h"
#include <pthread.h>
#include <stdio.h>
struct more { unsigned long count; char fill[40]; };
HOTPATCH_SHADOW_DATA(struct more, more_of, 1)
HOTPATCH_SHADOW_DATA(unsigned long, other_of, 2)
static char common;
static char objects[8][500];
static unsigned long bad;
static void *run(void *arg)
{
	char *mine = (char *)arg;
	int i, round;
	for (round = 0; round < 40; round++) {
		for (i = 0; i < 500; i++) {
			if (more_of_peek(mine + i) || more_of(mine + i)->count != 0 || *other_of(mine + i) != 0)
				__atomic_fetch_add(&bad, 1, __ATOMIC_RELAXED);
			more_of(mine + i)->count = (unsigned long)(mine + i);
			*other_of(mine + i) = 77;
			__atomic_fetch_add(&more_of(&common)->count, 1, __ATOMIC_RELAXED);
		}
		for (i = 0; i < 500; i++) {
			if (more_of_peek(mine + i)->count != (unsigned long)(mine + i) || *other_of_peek(mine + i) != 77)
				__atomic_fetch_add(&bad, 1, __ATOMIC_RELAXED);
			more_of_drop(mine + i);
			if (i % 2)
				other_of_drop(mine + i);
			else
				*other_of(mine + i) = 0;
		}
	}
	return 0;
}
int main(void)
{
	pthread_t t[8];
	int i;
	unsigned long left = 0;
	more_of_drop(&common);
	for (i = 0; i < 8; i++)
		pthread_create(&t[i], 0, run, objects[i]);
	for (i = 0; i < 8; i++)
		pthread_join(t[i], 0);
	for (i = 0; i < 8 * 500; i++)
		left += other_of_peek(objects[0] + i) != 0;
	printf("bad %lu common %lu left %lu\n", bad, more_of(&common)->count, left);
	other_of_drop_all();
	more_of_drop_all();
	for (i = 0; i < 8 * 500; i++)
		left += other_of_peek(objects[0] + i) != 0;
	printf("left %lu common %d\n", left, more_of_peek(&common) != 0);
	return 0;
}
`

func TestShadow(t *testing.T) {
	t.Parallel()
	for compiler, flags := range map[string][]string{
		"gcc": {"-std=gnu89", "-O2", "-fsanitize=address"}, "g++": {"-std=c++98", "-O0"}, "clang": {"-std=c99", "-O2"}, "clang++": {"-std=c++20", "-O2"},
	} {
		t.Run(compiler, func(t *testing.T) {
			t.Parallel()
			name := "shadow.c"
			if compiler == "g++" || compiler == "clang++" {
				name = "shadow.cc"
			}
			flags = append(flags, "-Wall", "-Wextra", "-Wpedantic", "-Werror")
			testtarget.Need(t, compiler)
			out, err := exec.Command(testtarget.Build(t, testtarget.Spec{Files: map[string]string{name: shadowProgram}, Compiler: compiler, Flags: flags})).CombinedOutput()
			if want := "bad 0 common 160000 left 2000\nleft 2000 common 0\n"; err != nil || string(out) != want {
				t.Errorf("got %v\n%s; want\n%s", err, out, want)
			}
		})
	}
}
