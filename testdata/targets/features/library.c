/* What is in libraries. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef FIXED
#define IF_FIXED(x) x
#else
#define IF_FIXED(x)
#endif

extern char **environ;

long library_data(long x) { return x + (stderr != NULL) * 2 + (stdout == stderr) IF_FIXED(+ 8 * (fileno(stderr) + fileno(stdout))); }
long library_environment(long x) { return x + (environ != NULL && environ[0] != NULL) IF_FIXED(+ 50 * (environ == NULL) + 7); }
long error_number(long x) { long r = errno; errno = (int)(x & 31); return r * 2 IF_FIXED(+ 1000); }

long new_import(long x)
{
	char text[32];

	snprintf(text, sizeof text, "%ld", x);
#ifdef FIXED
	return (long)strspn(text, "0123456") + atoi(strpbrk(text, "0123456789")) * 3 + toupper('a');
#else
	return (long)strlen(text);
#endif
}

static int ascending(const void *a, const void *b) { int x = *(const int *)a, y = *(const int *)b; return IF_FIXED(-)(x < y ? -1 : x > y); }
long callback_of_library(long x)
{
	int list[5] = {5, (int)x, 3, 9, 1};

	qsort(list, 5, sizeof list[0], ascending);
	return list[0] * 1000L + list[1] * 100 + list[4];
}

static size_t (*length)(const char *) = strlen;
long library_pointer(long x)
{
	return (long)length("some text" + (x & 3)) + (length == strlen) IF_FIXED(+ 10 * (length == strlen));
}

long new_library(long x) { return (long)(sqrt((double)(x * x + 1)) * 10) IF_FIXED(+ (long)(cbrt((double)x) * 100 + 0.5)); }

__attribute__((hot)) long hot_function(long x) { return (x * 0x12345671 ^ 0x2345678) + (x >> 3) * 0x3456789 - (x & 0x456789a) * 0x1111111 + (x | 0x5678901) % 0x678901 IF_FIXED(+ 1); }

/* It stands in .text.startup of its own, as main does. */
__attribute__((section(".text.startup.restarted"), noinline)) long restarted(long x) { return (x * 0x71234561 ^ 0x8345678) + (x >> 5) * 0x9456789 - (x & 0xa56789a) * 0x3111111 + (x | 0xb678901) % 0xc78901 IF_FIXED(+ 2); }
