// Version 1 of a patch of the consistent target: the same functions, which say
// version 2 of themselves. They call each other through the target's entries.
#include "hotpatch.h"
#include "consistent.h"

HOTPATCH_NAME("consistent", 1)

HOTPATCH_REF_FUNC(long, call_inner1, (operation *, long), "inner1")
HOTPATCH_REF_FUNC(long, call_inner3, (operation *, long), "inner3")
HOTPATCH_REF_FUNC(long, call_inner4, (operation *, long), "inner4")
HOTPATCH_REF_FUNC(void, target_linger, (operation *), "linger")
HOTPATCH_REF_FUNC(long, target_descend, (operation *, long, int), "descend")
HOTPATCH_REF_FUNC(long, target_through, (operation *, long), "through")
HOTPATCH_REF_FUNC(void, target_leap, (operation *, long), "leap")
HOTPATCH_REF_FUNC(long, target_cross, (operation *, long), "cross")
HOTPATCH_REF_FUNC(long, target_without_cfi, (operation *, long, long (*)(operation *, long)), "without_cfi")

#define SET_VERSION 2
#define linger target_linger
#define descend target_descend
#define through target_through
#define leap(o, x) \
	target_leap(o, x); \
	__builtin_unreachable()
#define cross target_cross
#define without_cfi target_without_cfi
#include "consistent_set.h"
