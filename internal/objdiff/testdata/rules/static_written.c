// A static variable that was constant in all readers, and is written now.
// changed: get put
// new: level
// warned: unstored-variable
static int level = 3;
volatile int sink;
int get(int x) { return x * level; }
void put(int x)
{
#ifdef NEW
	level = x;
#else
	sink = x;
#endif
}
