// An immediate is an immediate: the front end keeps lines where they were.
// changed: checked
void fail(const char *, int);
#ifdef NEW
#line 100
#else
#line 99
#endif
void checked(int x) { if (!x) fail("checked", __LINE__); }
