// The class of copies.h in several modules: this program and the libraries (made
// of copies_lib.cc) that it is given, each loaded with dlopen and RTLD_LOCAL.
//
//	copies [LIBRARY...]
//
// Commands on standard input:
//
//	answer X     "answer R R ...": Copied::answer of an object made here, and of
//	             one made by every library
//	thrice X     the same with the function template thrice<long>
//	library X    "library R ...": library_function of every library
//	load PATH    loads one more library: "loaded PATH"
//	unload       unloads the last one:   "unloaded"
#include "copies.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <unistd.h>
#include <vector>

namespace {

struct Library {
	void *handle;
	Copied *(*make_copied)();
	long (*call_thrice)(long);
	long (*library_function)(long);
};

template <class F> void look_up(void *handle, const char *name, F &function) {
	function = reinterpret_cast<F>(dlsym(handle, name));
	if (function == nullptr) {
		std::printf("dlsym: %s\n", dlerror());
		std::exit(1);
	}
}

Library load(const char *path) {
	Library library{};
	library.handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (library.handle == nullptr) {
		std::printf("dlopen: %s\n", dlerror());
		std::exit(1);
	}
	look_up(library.handle, "make_copied", library.make_copied);
	look_up(library.handle, "call_thrice", library.call_thrice);
	look_up(library.handle, "library_function", library.library_function);
	return library;
}

// Where the compiler of the caller cannot see which class it is.
__attribute__((noinline)) long answer_of(Copied *copied, long x) {
	long result = copied->answer(x);
	delete copied;
	return result;
}
__attribute__((noinline)) Copied *make_here() { return new Copied; }

} // namespace

int main(int argc, char **argv) {
	std::setvbuf(stdout, nullptr, _IOLBF, 0);
	std::vector<Library> libraries;
	for (int i = 1; i < argc; i++)
		libraries.push_back(load(argv[i]));
	std::printf("READY %d\n", getpid());
	char line[4096], path[4096];
	long x;
	while (std::fgets(line, sizeof line, stdin) != nullptr) {
		line[std::strcspn(line, "\n")] = 0;
		if (std::sscanf(line, "answer %ld", &x) == 1) {
			std::printf("answer %ld", answer_of(make_here(), x));
			for (Library &l : libraries)
				std::printf(" %ld", answer_of(l.make_copied(), x));
			std::printf("\n");
		} else if (std::sscanf(line, "thrice %ld", &x) == 1) {
			std::printf("thrice %ld", thrice(x));
			for (Library &l : libraries)
				std::printf(" %ld", l.call_thrice(x));
			std::printf("\n");
		} else if (std::sscanf(line, "library %ld", &x) == 1) {
			std::printf("library");
			for (Library &l : libraries)
				std::printf(" %ld", l.library_function(x));
			std::printf("\n");
		} else if (std::sscanf(line, "load %4095s", path) == 1) {
			libraries.push_back(load(path));
			std::printf("loaded %s\n", path);
		} else if (std::strcmp(line, "unload") == 0 && !libraries.empty()) {
			dlclose(libraries.back().handle);
			libraries.pop_back();
			std::printf("unloaded\n");
		} else {
			std::printf("what is \"%s\"?\n", line);
		}
	}
}
