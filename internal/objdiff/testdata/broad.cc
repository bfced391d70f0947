// A bit of everything that a C++ file can have. With NEW, Shop::sell is different.
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {
int sales;
struct Refusal : std::runtime_error {
	using std::runtime_error::runtime_error;
};
int counted(int n) { return sales += n; }
}

struct Item {
	virtual ~Item() {}
	virtual int price() const { return 1; }
	std::string name;
};

struct Book : Item {
	int price() const override { return 10; }
	int pages = 100;
};

inline int next_id()
{
	static int id = 100;
	return ++id;
}

template <class T> T clamp(T x, T lo, T hi) { return x < lo ? lo : x > hi ? hi : x; }

class Shop {
public:
	int sell(const std::string &what, int n);
	std::unique_ptr<Item> make(int kind);

private:
	std::map<std::string, int> stock;
};

thread_local std::vector<int> receipts;
static std::string motto = "buy two";

int Shop::sell(const std::string &what, int n)
{
	static std::vector<int> history;
	static int calls;
	calls++;
#ifdef NEW
	if (n < 0)
		throw Refusal("negative number of " + what);
#endif
	try {
		if (stock.at(what) < n)
			throw Refusal(what);
	} catch (const std::out_of_range &) {
		stock[what] = 10;
	}
	stock[what] -= n;
	history.push_back(n);
	receipts.push_back(next_id());
	return counted(clamp(n, 0, 10)) + calls + (int)history.size();
}

std::unique_ptr<Item> Shop::make(int kind)
{
	auto small = [](int k) { return k < 3; };
	if (small(kind))
		return std::make_unique<Book>();
	return nullptr;
}

int main()
{
	Shop shop;
	try {
		shop.sell(motto, 1);
	} catch (const Refusal &r) {
		return r.what()[0];
	}
	return shop.make(1)->price();
}
