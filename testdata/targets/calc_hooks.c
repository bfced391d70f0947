// A patch of the calculator with hooks. Each prints a line in the target, which
// shows when it ran and that add_one was old or new then: "hook NAME add_one N".
//
//	-DREFUSE_APPLY, -DREFUSE_REVERT   the hook before it gives 1, which cancels
#include "hotpatch.h"

#include <stdio.h>

HOTPATCH_NAME("hooks", 1)

HOTPATCH_REF_FUNC(long, target_add_one, (long x), "add_one")

#ifdef REFUSE_APPLY
enum { before_apply_result = 1 };
#else
enum { before_apply_result = 0 };
#endif
#ifdef REFUSE_REVERT
enum { before_revert_result = 1 };
#else
enum { before_revert_result = 0 };
#endif

// Through the target's entry: old code before the jump is there, new code after.
static int hook(const char *name, int result) {
	printf("hook %s add_one %ld\n", name, target_add_one(1));
	fflush(stdout);
	return result;
}

static int before_apply(void) { return hook("before-apply", before_apply_result); }
static int after_apply(void) { return hook("after-apply", 0); }
static int before_revert(void) { return hook("before-revert", before_revert_result); }
static int after_revert(void) { return hook("after-revert", 0); }

HOTPATCH_BEFORE_APPLY(before_apply)
HOTPATCH_AFTER_APPLY(after_apply)
HOTPATCH_BEFORE_REVERT(before_revert)
HOTPATCH_AFTER_REVERT(after_revert)

long add_one(long x);
long add_one(long x) { return x + 1001; }
