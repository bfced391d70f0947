// A variable leads to rows of another length.
// refused: changed-type
// allow: struct-layout
// changed: cell
#ifdef NEW
#define COLUMNS 6
#else
#define COLUMNS 4
#endif
static int (*rows)[COLUMNS];
void set(void *p) { rows = p; }
int cell(int i, int k) { return rows[i][k]; }
