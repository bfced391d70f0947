// What object files can have: COMDAT groups, exception tables, thread-local
// variables, jump tables, cold parts, constructors.
#include <stdexcept>
#include <string>
#include <vector>

thread_local int depth;
static std::string motto = "a constructor";
int common_table[8] = {1, 2, 3};

template <class T> T twice(T x) { return x + x; }

struct Base {
	virtual ~Base() {}
	virtual int run(int x) { return x; }
};

int pick(int x)
{
	switch (x) {
	case 0: return twice(depth);
	case 1: throw std::runtime_error("one");
	case 2: return (int)motto.size();
	case 3: depth++; return 4;
	case 4: return common_table[x + depth];
	case 5: return Base().run(x);
	}
	return -1;
}

int guarded(int x)
{
	std::vector<int> list;
	try {
		list.push_back(pick(x));
	} catch (const std::exception &e) {
		return e.what()[0];
	}
	return list[0];
}
