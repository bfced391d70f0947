// A patch of throws.cc: throws, catches and rethrows within the patch library,
// across the frames of the target.
#include "hotpatch.h"

#include <stdexcept>
#include <string>

HOTPATCH_NAME("throws", 1)

long middle(long x);

long middle(long x) {
	try {
		throw std::runtime_error(std::to_string(x + 5000));
	} catch (const std::exception &) {
		throw;
	}
}
