package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"hotpatch/internal/testtarget"
)

// placeTarget maps all that is free within three gigabytes of its code when it is told
// to "fill", and gives some of it back at "free".
const placeTarget = `
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static int asked;
static __attribute__((noinline, noclone)) int work(int x)
{
	asked++;
#ifdef FIXED
	return x * 2000 + asked + 7;
#else
	return x * 1000 + asked + 3;
#endif
}
static char *last;
static void take(uint64_t from, uint64_t to)
{
	const uint64_t step = 1 << 30;
	while (from < to) {
		uint64_t n = to - from < step ? to - from : step;
		char *p = mmap((void *)from, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
		if (p != MAP_FAILED && n >= 64 << 20 && (p > (char *)&work ? p - (char *)&work : (char *)&work - p) < 1 << 30)
			last = p;
		from += n;
	}
}
static uint64_t fill(void)
{
	static uint64_t gaps[4096][2];
	char line[4096];
	uint64_t here = (uint64_t)&work, reach = (uint64_t)3 << 30, end = here > reach ? here - reach : 65536, from, to, n = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	if (f == NULL)
		return 0;
	end &= ~(uint64_t)4095;
	while (fgets(line, sizeof line, f) != NULL)
		if (sscanf(line, "%" SCNx64 "-%" SCNx64, &from, &to) == 2) {
			if (from > end && n < 4096) {
				gaps[n][0] = end;
				gaps[n++][1] = from < here + reach ? from : here + reach;
			}
			if (to > end)
				end = to;
			if (end > here + reach)
				break;
		}
	fclose(f);
	for (uint64_t i = 0; i < n; i++)
		if (gaps[i][0] < gaps[i][1])
			take(gaps[i][0], gaps[i][1] & ~(uint64_t)4095);
	return n;
}
int main(void)
{
	char line[100];
	int x;
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (strcmp(line, "fill\n") == 0)
			printf("filled %d\n", fill() > 0 && last != NULL);
		else if (strcmp(line, "free\n") == 0)
			printf("freed %d\n", munmap(last, 64 << 20));
		else if (sscanf(line, "%d", &x) == 1)
			printf("work %d\n", work(x));
	}
	return 0;
}
`

// TestBuildNoHole: without room within reach of the program a patch is refused, and the
// process stays as it is; when there is room again, the patch goes in.
func TestBuildNoHole(t *testing.T) {
	t.Parallel()
	for _, b := range some([]built{{false, "gcc", "pie", "-O2", true}, {false, "gcc", "no-pie", "-O2", true}}, 0) {
		t.Run(b.kind, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := func(name string) string { return filepath.Join(dir, name) }
			if err := os.WriteFile(path("place.c"), []byte(placeTarget), 0o644); err != nil {
				t.Fatal(err)
			}
			flags := append(b.flags(), "-ffunction-sections", "-fdata-sections", "place.c")
			b.compile(t, dir, append(flags, "-c", "-o", "pre.o")...)
			b.compile(t, dir, append(flags, "-DFIXED", "-c", "-o", "post.o")...)
			b.compile(t, dir, "-"+b.kind, "-Wl,--build-id", "-o", "program", "pre.o")
			must(t, "build", "--pre", path("pre.o"), "--post", path("post.o"), "--base", path("program"), "-o", path("fix.so"))

			p := testtarget.Start(t, path("program"))
			ask := func(question, want string) {
				t.Helper()
				if got := p.Ask(question, "^(work|filled|freed)"); got != want {
					t.Fatalf("%s: it says %q, want %q", question, got, want)
				}
			}
			ask("1", "work 1004")
			ask("fill", "filled 1")
			before := testtarget.TextSnapshot(t, p.PID())
			refused(t, 5, "no-place-near", "apply", "--pid", strconv.Itoa(p.PID()), path("fix.so"))
			unchanged(t, before, p.PID())
			ask("1", "work 1005")
			ask("free", "freed 0")
			apply(t, p.PID(), path("fix.so"))
			ask("1", "work 2010")
			revert(t, p.PID(), "fix")
			ask("1", "work 1007")
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}
