// A class in front of another of its name, in one function.
// refused: changed-vtable
struct Base { virtual int call(int) = 0; };
extern Base *kept[4];
void setup() {
#ifdef NEW
	{
		struct L : Base { int call(int x) override { return x - 1; } };
		kept[2] = new L;
	}
#endif
	{
		struct L : Base { int call(int x) override { return x + 1; } };
		kept[0] = new L;
	}
	{
		struct L : Base { int call(int x) override { return x * 2; } };
		kept[1] = new L;
	}
}
