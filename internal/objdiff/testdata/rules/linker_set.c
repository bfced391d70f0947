// A new entry of a list that the linker makes.
// refused: changed-constructor
// allow: constructor
// changed: work
// new: entry_two two
// warned: new-global
struct command { const char *name; int (*run)(int); };
#define COMMAND(f) static struct command entry_##f __attribute__((section("commands"), used)) = {#f, f}
int one(int x) { return x + 1; }
COMMAND(one);
#ifdef NEW
int two(int x) { return x + 2; }
COMMAND(two);
#endif
extern struct command __start_commands[], __stop_commands[];
int work(int x)
{
	for (struct command *c = __start_commands; c < __stop_commands; c++)
		x = c->run(x);
#ifdef NEW
	return x * 2;
#else
	return x;
#endif
}
