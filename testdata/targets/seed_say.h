// What is behind every version of the seed's functions; included once a version.
#pragma once

#include <cstdio>
#include <string_view>

static inline int say(const char *greeting, int version, int number, std::string_view who) {
	if (number < 0)
		return -number * 10 + version;
	std::printf("%s %.*s! %d\n", greeting, static_cast<int>(who.size()), who.data(), number);
	return number * 10 + version;
}
