// Package objdiff compares two builds of one object file, before and after a
// change of its source, and says what a patch has to contain: functions whose
// code differs, what is new, and what those refer to. It is pure: it sees the
// two objects and nothing of the program that runs.
//
// # What is the same
//
// Functions are compared instruction by instruction, with what they refer to by
// meaning and not by number: a function or variable is the same if it continues
// the other build's (its twin), a string or a constant table is the same if its
// content is. So the order of things in the file makes no difference.
//
// The twin of a symbol is found by name, in the scope of its source file;
// numbers that compilers append are left aside. A static variable of a function
// is found by who refers to it, because its number says nothing and its state
// must go on: where that is not certain, the comparison is refused.
//
// That twins of functions are found by name needs no such care. Code that did
// not change was compiled, in the new build, together with what it calls there.
// So whatever function becomes the twin of another, as long as that is done one
// to one, unchanged callers fit the new code of their callees.
//
// # What is refused
//
// Existing data keeps its values, so data whose initial value, size or place
// differs is refused, and so are constructors, which have already run, layouts
// of types that objects in memory have, and whatever else a replaced function
// cannot repair. Every refusal names symbol, file and line. Some can be
// overridden by name, if the author of the patch knows better.
//
// kpatch's create-diff-object and Linux' objtool klp showed the way.
package objdiff
