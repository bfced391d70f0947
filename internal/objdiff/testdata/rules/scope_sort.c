// refused: changed-scope
// allow: scope
// changed: get
// new: thing
// removed: thing
// warned: new-global removed-variable
#ifdef NEW
int thing(void) { return 3; }
int get(void) { return thing(); }
#else
int thing = 3;
int get(void) { return thing; }
#endif
