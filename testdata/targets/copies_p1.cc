// A patch of copies.h: an inline virtual method and an instance of a function
// template, both weak symbols with a copy in every module of the target. The
// class is spelled out again with the method not inline, so that the patch
// exports it; it brings a vtable of its own, which nobody uses.
#include "hotpatch.h"

HOTPATCH_NAME("copies", 1)

struct Copied {
	long value = 1;
	virtual long answer(long x);
	virtual ~Copied() = default;
};

long Copied::answer(long x) { return x + 5040 + value; }

template <class T> T thrice(T x);
template <> long thrice(long x) { return x * 3 + 5000; }
