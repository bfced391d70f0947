extern long shared_count;
int other(int), other_op(int), tail(int), a_main(int, char **);
int (*b_keep(int))(int);
