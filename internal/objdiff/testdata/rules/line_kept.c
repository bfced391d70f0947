// Lines that were inserted, with a #line that keeps the numbers, make no difference.
// changed:
// new:
void fail(const char *, int);
#ifdef NEW
/* a comment
 * of some
 * lines
 */
#endif
#line 100
void checked(int x) { if (!x) fail("checked", __LINE__); }
void again(int x) { if (!x) fail("again", __LINE__); }
