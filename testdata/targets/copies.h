// A class with nothing but inline methods: it has no key function, so every
// program and library that uses it has its own vtable and its own copies.
#pragma once

struct Copied {
	long value = 1;
	virtual long answer(long x) { return x + 40 + value; }
	virtual ~Copied() = default;
};

// Inline, but not a method: weak, one copy a module.
template <class T> __attribute__((noinline)) T thrice(T x) {
	__asm__ volatile("" : "+r"(x));
	return x * 3;
}
