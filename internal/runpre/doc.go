// Package runpre finds where the functions and variables of an object file are
// in an image that was linked from it, by comparing the object's code with the
// image's. The image needs no symbols.
//
// An object's function is compared with the image's code at a candidate address,
// instruction by instruction. Where the object has a relocation nothing is
// compared: it is solved for the address of its symbol. Padding, the width of
// jumps, and what linkers make of references by way of the global offset table
// and of thread-local variables (x86-64 psABI 1.0, B.2; Drepper, "ELF Handling
// For Thread-Local Storage", 5.5) may differ.
//
// What was solved is provisional. A candidate falls if it contradicts what is
// known, or the content of a constant, of a jump table or of a variable's
// initial value, the name of an import, or a symbol table where there is one.
// A function is placed if exactly one candidate is left and something else than
// its own few bytes speaks for it; it then says where its callees and variables
// are, which is known from there on. Short code is told by its neighbours, if what
// is placed shows that the object's code is in one piece. What is ambiguous stays so
// and is refused.
//
// The idea is run-pre matching of Ksplice (Arnold and Kaashoek, EuroSys 2009).
package runpre
