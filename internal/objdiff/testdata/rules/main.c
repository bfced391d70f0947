// changed: main
// warned: main
int main(int argc, char **argv)
{
	(void)argv;
#ifdef NEW
	return argc + 2;
#else
	return argc + 1;
#endif
}
