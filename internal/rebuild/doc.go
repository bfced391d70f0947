// Package rebuild builds a program from its source tree before a change, and
// compiles again what the change concerns.
//
// It works on a copy, in a process of its own whose mount namespace has the copy in
// place of the tree: so every path is the one that the tree has, in objects as in
// what was configured before, and nothing can write into the tree itself. The build
// runs once, unchanged, with its compilers watched (package intercept). What must be
// compiled again are then the compilations that have read a file whose content is
// different after the change; the build system is not asked. They are repeated from
// their records, side by side.
//
// A changed file that no compiler has read may still matter: something else may make
// a source file of it, or compile differently because of it. If anything at all has
// opened it while the build ran, the build is run a second time, from the beginning but
// with the objects that it made before in place of compiling, and files and commands
// are compared.
package rebuild
