// The rows of an array have another length.
// refused: changed-type
// allow: struct-layout
// changed: cell
#ifdef NEW
int table[3][4];
#else
int table[2][6];
#endif
int *cell(int i, int j) { return &table[i][j]; }
