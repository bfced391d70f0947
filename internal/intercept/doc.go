// Package intercept watches the C and C++ compilers of a build, which knows
// nothing of it: hotpatch itself stands on PATH under the compilers' names,
// finds the real one behind itself, and does with it what was asked for. On the
// way it keeps what a later compilation of the same source needs: the object,
// the command with its directory and environment, and every file that was read.
//
// What is compiled gets a section for each function and variable, and debugging
// information with types. Nothing else differs for the build: output, messages
// and exit status are the compiler's. Steps that make no object file (probing,
// preprocessing, compiling to assembler) go through untouched, and so do links,
// which are noted.
//
// Which files a compilation has read is the compiler's own word (-MD), system
// headers included, with the content that they had then. Build systems are not
// asked: they miss dependencies.
//
// The options are those of GCC (gcc.gnu.org, "Invoking GCC", and its
// gcc/common.opt and c.opt for those that take a separate argument), which clang
// follows; response files as in libiberty's expandargv.
package intercept
