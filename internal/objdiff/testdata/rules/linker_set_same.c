// A list that stays as it is.
// changed: work
struct command { const char *name; int (*run)(int); };
int one(int x) { return x + 1; }
static struct command entry __attribute__((section("commands"), used)) = {"one", one};
extern struct command __start_commands[], __stop_commands[];
int work(int x)
{
#ifdef NEW
	x *= 2;
#endif
	for (struct command *c = __start_commands; c < __stop_commands; c++)
		x = c->run(x);
	return x;
}
