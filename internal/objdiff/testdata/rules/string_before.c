// Code may count from before a string, as gcc's does when it has looked at the first
// character: what is meant is the string that the label is at.
// changed: work
#ifdef NEW
#define TEXT "HEAX"
#else
#define TEXT "HEAD"
#endif
int work(long i)
{
	const char *p;
	__asm__(".pushsection .rodata.str1.1,\"aMS\",@progbits,1\n.string \"GET\"\n.Lmine: .string \"" TEXT "\"\n.popsection\n"
		"lea .Lmine-1(%%rip), %0" : "=r"(p));
	return p[i + 1];
}
