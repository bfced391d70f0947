// changed: serve
// warned: never-returns
void work(int);
void serve(int x)
{
	for (;;) {
#ifdef NEW
		work(x + 1);
#else
		work(x);
#endif
	}
}
