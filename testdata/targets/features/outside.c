/* What does not change. */
__thread long elsewhere = 100;
long outside(long x);
long outside(long x) { static long n; n++; return x * 2 + (n & 7); }
