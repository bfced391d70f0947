// A static variable with its guard, of an inline function and of an ordinary one.
// changed: work(int)
#include <vector>
inline std::vector<int> &shared()
{
	static std::vector<int> list{1, 2, 3};
	return list;
}
int work(int x)
{
	static std::vector<int> own{4, 5};
	own.push_back(x);
#ifdef NEW
	shared().push_back(x);
#endif
	return (int)(shared().size() + own.size());
}
