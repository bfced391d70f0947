// Patch 1 of the seed program: all three functions.
#include "hotpatch.h"
#include "seed_class.h"
#include "seed_say.h"

HOTPATCH_NAME("seed", 1)

int DemoClass::say_hello(int number, std::string_view who) {
	calls++;
	return say("Completely patched!", 1, number, who);
}

int DemoVirtual::say_hello(int number, std::string_view who) {
	calls++;
	return say("Completely patched!", 1, number, who);
}

int say_hello_fun(int number, std::string_view who) { return say("Completely patched!", 1, number, who); }
