/* Uses every macro of hotpatch.h, in C and in C++. */
#include "hotpatch.h"

HOTPATCH_NAME("fix-login", 2)
HOTPATCH_DESCRIPTION("check the length before the copy, “everywhere”")
HOTPATCH_CVE("CVE-2026-1234")
HOTPATCH_CVE("CVE-2026-1235")
HOTPATCH_BASE("9f86d081884c7d65")
HOTPATCH_BASE_MODULE("libfoo.so.1", "00112233")
HOTPATCH_CONSISTENCY_STACK

#ifdef __cplusplus
extern "C" {
#endif

/* Filled by the test as hotpatch would do it. */
HOTPATCH_REF_FUNC(int, old_check, (int a, int b), "login.c:check")
HOTPATCH_REF_VAR(int, failures, "login.c:failures")
HOTPATCH_REF_VAR(const int, limit, "limit")
typedef int helper_fn(int);
HOTPATCH_REF(helper_fn, helper, "app!login.c:helper")
static helper_fn *bound;
HOTPATCH_BIND(bound, "Login::bound(int)")

static int new_login(int n)
{
	++*failures;
	return old_check(n, *limit) + helper(1) + bound(2);
}
HOTPATCH_REPLACE(new_login, "login.c:login")

int global_new(int x);
int global_new(int x) { return x + 1; }
HOTPATCH_REPLACE(global_new, "Login::old(char const*, int)")

static int by_address(int x) { return x + 2; }
HOTPATCH_REPLACE_AT(by_address, "9f86d081884c7d65", 0x1234)

static int first(void) { return 1; }
static int second(void) { return 2; }
int after(void);
int after(void) { return 3; }
HOTPATCH_BEFORE_APPLY(first)
HOTPATCH_BEFORE_APPLY(second)
HOTPATCH_AFTER_APPLY(after)
HOTPATCH_BEFORE_REVERT(first)
HOTPATCH_AFTER_REVERT(second)

int kept(int x);
int kept(int x) { return x + 3; }
HOTPATCH_KEEP(kept)

int offered(int x);
int offered(int x) { return kept(x) + new_login(x); }

int hidden(int x);
__attribute__((visibility("hidden"))) int hidden(int x) { return x + 4; }

int weak(int x);
__attribute__((weak)) int weak(int x) { return x + hidden(x); }

int variable = 5;

#ifdef __cplusplus
}
#endif
