// Classes and variables in an unnamed namespace are the same ones.
// changed: Widget::run(int)
#include <stdexcept>
namespace {
int calls;
struct Refusal : std::runtime_error { using std::runtime_error::runtime_error; };
struct Impl { virtual ~Impl() {} virtual int go(int x) { return x + calls; } };
}
struct Widget { int run(int); };
int Widget::run(int x)
{
	calls++;
#ifdef NEW
	if (x < -5)
#else
	if (x < 0)
#endif
		throw Refusal("negative");
	Impl *i = new Impl;
	int r = i->go(x);
	delete i;
	return r;
}
