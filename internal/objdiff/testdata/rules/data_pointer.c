// The text behind a pointer is its initial value too.
// refused: changed-data
#ifdef NEW
const char *motto = "buy two";
#else
const char *motto = "buy one";
#endif
const char *get(void) { return motto; }
