// refused: changed-scope
// allow: scope
// changed: get
// new:
#ifdef NEW
int thing(void) { return 3; }
int get(void) { return thing(); }
#else
int thing = 3;
int get(void) { return thing; }
#endif
