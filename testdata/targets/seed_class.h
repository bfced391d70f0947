// What the seed program (seed.cc) and its patches share.
//
// Every function prints "Hello, <who>! <number>" and gives number * 10 + the
// version of its code: 0 as built, 1 and 2 from the patches. A negative number
// stands for its absolute value, without printing: that is how the threads that
// only count call it.
#pragma once

#include <string_view>

#define SEED_NOINLINE __attribute__((noinline))

// An ordinary member function. `calls` shows that `this` arrives intact.
class DemoClass {
public:
	SEED_NOINLINE int say_hello(int number, std::string_view who);
	long calls = 0;
};

// A virtual one. The destructor is the key function, so the vtable is in seed.cc
// and a patch that defines only say_hello brings none.
class DemoVirtual {
public:
	virtual ~DemoVirtual();
	SEED_NOINLINE virtual int say_hello(int number, std::string_view who);
	long calls = 0;
};

// A free function.
SEED_NOINLINE int say_hello_fun(int number, std::string_view who);
