// A switch that compilers make a table of values of (CSWTCH, switch.table).
// changed: value
int value(int x)
{
	switch (x) {
	case 0: return 17;
	case 1: return 4;
	case 2: return 99;
	case 3: return 12;
	case 4: return 55;
#ifdef NEW
	case 5: return 9;
#else
	case 5: return 8;
#endif
	}
	return 0;
}
int other(int x)
{
	switch (x) {
	case 0: return 7;
	case 1: return 41;
	case 2: return 9;
	case 3: return 2;
	case 4: return 5;
	case 5: return 88;
	}
	return 0;
}
