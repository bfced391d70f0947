// Patch 2 of the seed program: all three functions.
#include "hotpatch.h"
#include "seed_class.h"
#include "seed_say.h"

HOTPATCH_NAME("seed", 2)

int DemoClass::say_hello(int number, std::string_view who) {
	calls++;
	return say("Patched once more!", 2, number, who);
}

int DemoVirtual::say_hello(int number, std::string_view who) {
	calls++;
	return say("Patched once more!", 2, number, who);
}

int say_hello_fun(int number, std::string_view who) { return say("Patched once more!", 2, number, who); }
