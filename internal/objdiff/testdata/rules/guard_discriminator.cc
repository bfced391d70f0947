// A static variable in front of one with the same name: they are numbered anew.
// refused: ambiguous-static
int work(int x)
{
#ifdef NEW
	if (x == 7) {
		static int count = 1;
		return count += x;
	}
#endif
	{
		static int count = 1;
		return count += x;
	}
}
