#include "u.h"
int main(int argc, char **argv) { return a_main(argc, argv) + (b_keep(argc) != 0); }
