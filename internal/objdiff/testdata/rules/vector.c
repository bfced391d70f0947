// A vector constant (.rodata.cst16 and the like).
// changed: fill
void fill(int *p)
{
	p[0] = 1, p[1] = 2, p[2] = 3;
#ifdef NEW
	p[3] = 5;
#else
	p[3] = 4;
#endif
}
void other(int *p) { p[0] = 1, p[1] = 2, p[2] = 3, p[3] = 4; }
