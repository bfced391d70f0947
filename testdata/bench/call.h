// The functions whose calls call.cc measures.
#pragma once

extern "C" __attribute__((noinline)) long plain(long x);

struct Thing {
	virtual ~Thing() = default;
	__attribute__((noinline)) virtual long method(long x);
	long padding[4] = {};
};
