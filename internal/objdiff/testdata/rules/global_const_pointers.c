// Read-only after relocation, and visible to other files.
// flags: -fPIC
// refused: changed-data
#ifdef NEW
const char *const names[] = {"one", "two", "drei"};
#else
const char *const names[] = {"one", "two", "three"};
#endif
const char *get(int i) { return names[i]; }
