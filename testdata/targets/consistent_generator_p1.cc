// Version 1 of a patch of the generator: it counts from 1000 up.
#include "hotpatch.h"
#include "consistent_generator.h"

HOTPATCH_NAME("generator", 1)

generator counting(long from) {
	for (long i = from + 1000;; i++)
		co_yield i;
}
